"""The hostile inputs and the faults that the server must survive, and the tests that prove each.

A test whose module is here has a case with the row's number in its id, before the cause: `-k 37` runs row 37.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One input or fault.

    Attributes:
        what: it.
        answer: what the server must do; beside it, requests of others get the same tokens as ever.
        tests: the tests that prove it, as FILE::FUNCTION beneath tests/.
    """

    what: str
    answer: str
    tests: tuple[str, ...]


_REQUESTS = "robustness/test_requests.py"
_HTTP = "robustness/test_http.py"
_FAULTS = "robustness/test_faults.py"
_REFUSED = f"{_REQUESTS}::test_it_is_refused"
_SERVED = f"{_REQUESTS}::test_it_is_served"
_ENDS = f"{_HTTP}::test_it_is_answered_or_ended"

ROWS: dict[int, Row] = {
    1: Row("a million choices or stop strings", "400 before any fan-out", (_REFUSED,)),
    2: Row(
        "NaN and infinity", "400", (_REFUSED, "server/test_protocol.py::test_numbers_that_are_not_finite_are_refused")
    ),
    3: Row("min_tokens too large; max_tokens null or 0", "400, or the default", (_REFUSED, _SERVED)),
    4: Row(
        "integers below zero or beyond 64 bits",
        "400",
        (_REFUSED, "server/test_protocol.py::test_bad_values_are_refused"),
    ),
    5: Row("token ids beyond the vocabulary", "400", (_REFUSED,)),
    6: Row("logprobs beyond the cap, or of a long prompt", "400; else bounded memory", (_REFUSED, _SERVED)),
    7: Row(
        "penalties in every mode",
        "200",
        (_SERVED, "server/routes/test_completions.py::test_penalties_work_in_every_mode"),
    ),
    8: Row("no prompt", "400", (_REFUSED, "server/test_protocol.py::test_bad_prompts_cost_one_short_answer")),
    9: Row("JSON nested 20,000 deep", "400", (_REFUSED, "server/test_protocol.py::test_deeply_nested_json_is_refused")),
    10: Row("a prompt of 27 MB", "400 or 413; probes are answered meanwhile", (f"{_REQUESTS}::test_a_huge_prompt",)),
    11: Row("a prompt larger than the KV cache", "400 at once", (_REFUSED,)),
    12: Row("a regular expression that explodes", "200 or 400 in bounded time", (f"{_REQUESTS}::test_a_grammar",)),
    13: Row("a malformed schema or tool", "400", (f"{_REQUESTS}::test_a_grammar",)),
    14: Row("a flood of schemas", "bounded memory", (f"{_REQUESTS}::test_a_flood_of_schemas",)),
    15: Row("a template in the request", "400", (_REFUSED,)),
    16: Row(
        "a hostile template in the model",
        "a sandbox; a clear error",
        (
            "server/chat/test_chat_template.py::test_hostile_templates_are_refused",
            "server/chat/test_chat_template.py::test_a_template_that_is_not_jinja_is_a_model_error",
        ),
    ),
    17: Row("embeddings and pickles", "400, never deserialised", (_REFUSED,)),
    18: Row("the address of an image", "400, and no connection", (f"{_REQUESTS}::test_an_images_address",)),
    19: Row("compressed bombs, hundreds of images", "400 or 413, not decoded", (_REFUSED, _ENDS)),
    20: Row(
        "odd users, ids that forge a log line, ids twice",
        "bounded; the server's ids are its own",
        (
            _REFUSED,
            f"{_REQUESTS}::test_ids",
            "server/http/test_access.py::test_an_id_that_could_forge_a_line_is_replaced",
        ),
    ),
    21: Row(
        "what is not implemented",
        "400 naming it",
        (
            _REFUSED,
            f"{_REQUESTS}::test_a_field_is_named",
            "server/test_protocol.py::test_what_is_not_implemented_is_refused_by_name",
        ),
    ),
    22: Row(
        "giant headers",
        "431; memory stays",
        (_ENDS, "server/http/test_connections.py::test_a_client_that_goes_on_sending_headers_costs_nothing"),
    ),
    23: Row(
        "oversized bodies, announced or in chunks",
        "413 while reading",
        (
            _ENDS,
            "server/http/test_connections.py::test_a_body_beyond_the_limit_is_refused_and_the_client_reads_the_answer",
        ),
    ),
    24: Row(
        "slow headers and bodies",
        "408 or closed",
        (_ENDS, "server/http/test_connections.py::test_a_pace_of_single_bytes_does_not_prolong_the_time"),
    ),
    25: Row("odd Host headers and paths around the keys", "401 or 404", (_ENDS,)),
    26: Row("wrong, empty, foreign keys", "401", (_ENDS,)),
    27: Row("every route without a key", "401, but for the public ones", (f"{_HTTP}::test_every_route_without_a_key",)),
    28: Row(
        "an exception of our own",
        "500 without its text",
        ("server/http/test_errors.py::test_an_unexpected_error_is_a_500_without_its_reason",),
    ),
    29: Row("probing another key's cached prefixes", "nothing is found", (f"{_HTTP}::test_prefixes_of_another_key",)),
    30: Row(
        "pickled weights and remote code",
        "refused; never run",
        (
            f"{_HTTP}::test_code_in_a_checkpoint",
            "engine/loading/test_safetensors_source.py::test_pickled_weights_are_refused_with_the_reason",
        ),
    ),
    31: Row(
        "bytes to internal sockets",
        "out of reach; dropped",
        (f"{_HTTP}::test_internal_sockets", "e2e/test_engine_process.py::test_no_message_ends_the_engine"),
    ),
    32: Row(
        "the forward pass fails; the engine is killed",
        "503 or an error event; it comes back",
        (
            f"{_FAULTS}::test_faults_of_a_step",
            "engine/test_engine.py::test_a_step_that_fails_ends_its_sequences_and_not_the_engine",
            "e2e/test_faults.py::test_a_killed_engine_ends_streams_with_an_error_and_comes_back",
            "e2e/test_faults.py::test_a_killed_engine_answers_waiting_requests_with_503",
        ),
    ),
    33: Row(
        "the engine stops or hangs",
        "noticed, killed, started again",
        (
            f"{_FAULTS}::test_a_step_that_hangs",
            "e2e/test_faults.py::test_an_engine_that_hangs_is_killed_and_comes_back",
        ),
    ),
    34: Row(
        "clients leave in every phase",
        "their blocks are free within a step",
        (
            "engine/test_aborts.py::test_a_thousand_aborts_leave_nothing_behind",
            "server/http/test_streaming.py::test_leaving_after_any_number_of_turns_leaves_nothing_behind",
        ),
    ),
    35: Row(
        "a tiny KV cache",
        "the same tokens",
        (
            "engine/test_engine.py::test_a_tiny_pool_preempts_and_gives_the_same_tokens",
            "engine/test_same_tokens.py::test_same_tokens_whatever_the_pool_the_cache_and_the_chunks",
        ),
    ),
    36: Row(
        "ten times the load",
        "refused before any work, with Retry-After",
        (
            "e2e/test_load.py::test_ten_times_what_it_can_take_is_refused_and_leaves_nothing",
            "server/http/test_overload.py::test_whatever_would_take_a_place_is_refused_unread",
        ),
    ),
    37: Row(
        "a reader that stops",
        "a bounded buffer, then its end",
        (
            f"{_FAULTS}::test_a_reader_that_stops",
            "server/http/test_connections.py::test_a_reader_that_stops_is_cut_off",
        ),
    ),
    38: Row("long prompts without end", "streams go on", (f"{_FAULTS}::test_streams_beside_long_prompts",)),
    39: Row(
        "logits that are no numbers",
        "that request fails; its cache is forgotten",
        (
            f"{_FAULTS}::test_faults_of_a_step",
            "engine/test_engine.py::test_what_a_broken_sequence_left_in_the_cache_harms_no_other",
        ),
    ),
    40: Row(
        "characters over several tokens; failures in a stream; SIGTERM",
        "the full text; an error event; a drain",
        (
            "server/text/test_detokenizer.py::test_random_bytes_join_to_the_full_decode",
            "server/http/test_streaming.py::test_a_stream_whose_engine_stops_ends_with_an_error_event_and_done",
            "e2e/test_faults.py::test_a_signal_ends_the_server_soon_with_an_open_stream",
            "e2e/test_drain.py::test_a_drained_server_loses_no_request",
        ),
    ),
    41: Row(
        "thousands of texts for embeddings, or of pairs of long ones",
        "streams and probes go on; 400 beyond a bound",
        (
            f"{_REQUESTS}::test_many_texts",
            "engine/test_dynamic_batcher.py::"
            "test_prompts_that_end_with_values_take_a_share_of_the_streams_time_together",
        ),
    ),
}
