"""The built-in calibration text and the text that is held out from it."""

import numpy as np

from engine.quantization.calibration_text import builtin_text


def test_the_built_in_texts_share_no_paragraph():
    calibration, held_out = (
        {" ".join(paragraph.split()) for paragraph in builtin_text(held_out=part).split("\n\n")}
        for part in (False, True)
    )
    assert not calibration & held_out
    assert min(map(len, (builtin_text(held_out=False), builtin_text(held_out=True)))) > 20_000
    assert np.mean([len(text) for text in held_out]) > 20
