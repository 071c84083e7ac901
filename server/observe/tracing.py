"""OpenTelemetry traces (--traces otlp): a span a request, and beneath it where its time went.

request -> prepare (until the engine has it) -> queue -> prefill -> decode, the last three for each choice. They are
made from the times that the engine reports, once the request has ended: nothing is done for a token. Attributes are
those of the semantic conventions for HTTP and generative AI; prompts and outputs are never among them.

The SDK and its OTEL_* variables decide what is sampled and where it goes. It exports from a thread and a bounded
queue, so that no request waits for a collector.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span
    from starlette.types import Scope

    from engine.protocol import SamplingParams
    from server.http.request_record import RequestRecord
    from server.observe.request_timer import ChoiceTimes

_MAX_CHOICES = 16  # that one request has spans for
_MAX_PATH = 256  # characters
_FLUSH_TIMEOUT = 3.0  # seconds that the end of the server waits for the collector
_OPERATIONS = {  # routes -> gen_ai.operation.name
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
}
_PROVIDER = "deepseek_serve"


class Tracing:
    """Makes the spans of one server.

    Attributes:
        model_name: what spans call the model; server.app sets it.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.model_name = ""
        self._provider, self._tracer = provider, provider.get_tracer("deepseek-serve", version("deepseek-serve"))
        self._extract = TraceContextTextMapPropagator().extract  # baggage is not used, so it is not read

    def begin(self, scope: Scope, record: RequestRecord) -> None:
        """Begin the span of a request that arrives, as a child of the caller's span if its headers name one."""
        from opentelemetry.trace import SpanKind

        carrier: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            if name in (b"traceparent", b"tracestate"):
                carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
        if len(carrier.get("traceparent", ())) != 1:
            carrier = {}
        offset = time.time() - time.monotonic()
        span = self._tracer.start_span(
            scope["method"],
            self._extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"][:_MAX_PATH]},
            start_time=int((record.started + offset) * 1e9),
            record_exception=False,
        )
        context = span.get_span_context()
        if context.is_valid:  # else the SDK is disabled
            record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        if span.is_recording():
            record.trace = RequestTrace(self, span, offset)

    def child(self, parent: Span, name: str, start: int, end: int, attributes: dict[str, Any]) -> None:
        """Make a span that has ended; times are nanoseconds of Unix time."""
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(name, set_span_in_context(parent), attributes=attributes, start_time=start)
        span.end(max(start, end))

    async def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for."""
        flushing = threading.Thread(target=self._provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, _FLUSH_TIMEOUT)


class RequestTrace:
    """The span of one request, if it is sampled."""

    def __init__(self, tracing: Tracing, span: Span, offset: float) -> None:
        """`offset` is what makes time.monotonic's seconds those of Unix time."""
        self._tracing, self._span, self._offset = tracing, span, offset

    def describe(self, sampling: SamplingParams, num_choices: int) -> None:
        """Add what was asked for."""
        attributes = {
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k or None,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty or None,
            "gen_ai.request.presence_penalty": sampling.presence_penalty or None,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.choice.count": num_choices if num_choices > 1 else None,
        }
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def add_times(self, arrived: float, submitted: float, ended: float, choices: Iterable[ChoiceTimes]) -> None:
        """Add the spans of what the engine did; times are time.monotonic's."""
        self._child("prepare", arrived, submitted)
        listed = list(choices)
        if not listed:
            self._child("queue", submitted, ended)
        for number, choice in enumerate(listed[:_MAX_CHOICES]):
            attributes = {"deepseek_serve.choice": number}
            started = ended if choice.started is None else choice.started
            first = choice.first if choice.num_tokens else ended
            self._child("queue", submitted, started, **attributes)
            if choice.started is not None:
                self._child("prefill", started, first, **attributes)
            if choice.num_tokens:
                attributes["gen_ai.usage.output_tokens"] = choice.num_tokens
                self._child("decode", first, choice.last, **attributes)

    def end(self, what: str, route: str, status: int, record: RequestRecord, client: str, key_name: str) -> None:
        """End the request's span, which is called `what` unless its route has an operation."""
        from opentelemetry.trace import StatusCode

        span, operation = self._span, _OPERATIONS.get(route)
        model = self._tracing.model_name
        span.update_name(f"{operation} {model}" if operation else what)
        attributes: dict[str, Any] = {
            "http.route": route,
            "http.response.status_code": status,
            "http.request.header.x-request-id": [record.request_id],
            "client.address": client,
            "deepseek_serve.key_name": key_name,
        }
        if operation:
            attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": _PROVIDER}
            attributes |= {"gen_ai.request.model": model, "gen_ai.response.model": model}
        if record.prompt_tokens:
            attributes |= {"gen_ai.usage.input_tokens": record.prompt_tokens}
            attributes |= {"gen_ai.usage.output_tokens": record.output_tokens}
            attributes |= {"gen_ai.response.finish_reasons": sorted(record.finish_reasons)}
        if record.ttft is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = record.ttft
        if status >= 400:
            attributes["error.type"] = str(status)
        if status >= 500 or record.finish_reasons & {"error", "timeout"}:
            span.set_status(StatusCode.ERROR)
        span.set_attributes(attributes)
        span.end()

    def _child(self, name: str, start: float, end: float, **attributes: Any) -> None:
        start_ns, end_ns = (int((moment + self._offset) * 1e9) for moment in (start, end))
        self._tracing.child(self._span, name, start_ns, end_ns, attributes)


def start_tracing(exporter: SpanExporter | None = None) -> Tracing:
    """Return what makes and exports spans, as the OTEL_* variables say.

    Raises:
        ConfigError: the extra is not installed, or a variable is at fault.
    """
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("--traces otlp needs OpenTelemetry: pip install 'deepseek-serve[otel]'") from None
    attributes = {SERVICE_VERSION: version("deepseek-serve")}
    resource = Resource.create(attributes)
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # no variable has a name for it
        resource = Resource.create({**attributes, SERVICE_NAME: "deepseek-serve"})
    try:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # `close` does it
        provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
    except ValueError as error:
        raise ConfigError(f"--traces otlp: an OTEL_* variable is at fault: {error}") from None
    return Tracing(provider)


def _exporter() -> SpanExporter:
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(filter(None, map(os.environ.get, names)), "http/protobuf")
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
        except ImportError:
            package = "opentelemetry-exporter-otlp-proto-grpc"
            raise ConfigError(f"--traces otlp: OTEL_EXPORTER_OTLP_PROTOCOL is grpc; install {package}") from None
        exporter: SpanExporter = GrpcSpanExporter()
        return exporter
    raise ConfigError(f"--traces otlp: OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; valid are http/protobuf, grpc")
