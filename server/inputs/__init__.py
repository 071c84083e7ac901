"""What a model reads: every API's prompts become one `ModelInput` here, token ids and the modality of each.

`preprocess` is the way in: from a text, a `MarkedText` or token ids to a ModelInput. `fences` finds code in text,
`code_parts` finds a chat's parts of type code in the rendered prompt; `conversation` has it do so for server.LLM.

Another modality, such as images, joins as one more file. Its part of a message is a span of the rendered prompt, which
`code_parts`' marks find; `preprocess` puts its tokens in place of the span, with the modality's id; what the model
reads beside token ids (an image's patches) is one more field of ModelInput and of engine.protocol.GenerateRequest.
"""

from server.inputs.model_input import ModelInput
from server.inputs.preprocess import MarkedText, Prompt, check_modality, modalities_of_texts, preprocess

__all__ = ["MarkedText", "ModelInput", "Prompt", "check_modality", "modalities_of_texts", "preprocess"]
