"""The engine: takes requests, runs steps, gives back what each step brought. One thread, no HTTP, no text.

add, abort  ->  step: schedule -> execute -> update  ->  StepOutput
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from engine import device as devices
from engine.dynamic_batcher import DynamicBatcher
from engine.errors import ConfigError, ModelError
from engine.executor import Executor, LocalExecutor
from engine.kv_cache_manager import KVCacheManager
from engine.kv_cache_pool import KVCachePool
from engine.loading.open import open_tensors
from engine.loading.resolve import ModelSource, resolve_model
from engine.loading.weights import Weights
from engine.memory import keep_freed_memory
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.protocol import EngineInfo, GenerateRequest, SamplingParams, StepOutput, Terms
from engine.sampler import uniform
from engine.sequence import Sequence
from kernels.ops import KernelUnavailableError
from kernels.ops import resolve as resolve_ops

if TYPE_CHECKING:
    import torch

    from engine.config import EngineConfig
    from engine.models.config import ModelConfig
    from engine.protocol import AbortRequest, EngineStats

logger = logging.getLogger(__name__)

_DEFAULT_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}


class Engine:
    """A loaded model with its batcher and cache; see the module's drawing."""

    def __init__(
        self,
        info: EngineInfo,
        batcher: DynamicBatcher,
        executor: Executor,
        eos_token_ids: frozenset[int],
        seed: int,
    ) -> None:
        self.info = info
        self.batcher = batcher
        self.executor = executor
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._num_requests = 0

    @classmethod
    def load(cls, config: EngineConfig, *, progress: bool = False) -> Engine:
        """Find and load the model, size the cache, and run one step so that the first request meets warm kernels.

        Raises:
            ConfigError, ModelError: the settings or the model are at fault.
        """
        started = time.monotonic()
        source = resolve_model(config.model)
        model_config = source.read_config()
        device = devices.resolve_device(config.device)
        dtype = devices.resolve_dtype(config.dtype, model_config.dtype, device)
        threads = devices.set_threads(config.threads)
        max_seq_len = _max_seq_len(config, model_config)
        model = _load_model(source, model_config, config, device, dtype, max_seq_len, progress=progress)
        scales = _cache_scales(config, model)
        if model.ops.name == "native":
            devices.leave_cores_to_kernels()
        keep_freed_memory()
        loaded = time.monotonic()

        num_blocks = _num_kv_blocks(config, model, max_seq_len, dtype, scales, device)
        executor = LocalExecutor(ModelRunner(model, num_blocks, config.block_size, dtype, device, scales))
        batcher = _make_batcher(config, num_blocks, device)
        info = EngineInfo(
            max_seq_len=min(max_seq_len, num_blocks * config.block_size),
            vocab_size=model_config.vocab_size,
            num_blocks=num_blocks,
            block_size=config.block_size,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
        )
        if info.max_seq_len < max_seq_len:
            logger.warning(
                "the KV cache holds fewer tokens than max_seq_len %d: it is now %d", max_seq_len, info.max_seq_len
            )
        engine = cls(info, batcher, executor, frozenset(model_config.eos_token_ids), config.seed)
        engine._warm_up()
        logger.info(
            "loaded %s in %.1f s, warmed up in %.1f s: %s, %s, %d threads, kernels %s, "
            "max_seq_len %d, %d KV blocks of %d tokens",
            source.path,
            loaded - started,
            time.monotonic() - loaded,
            info.device,
            info.dtype,
            threads,
            model.ops.name,
            info.max_seq_len,
            num_blocks,
            config.block_size,
        )
        return engine

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.batcher.has_work

    def add(self, request: GenerateRequest) -> None:
        """Take in a request's `n` sequences.

        Raises:
            RequestError: it can never be computed here.
        """
        self.info.check(request.prompt_token_ids, request.sampling)
        params = request.sampling
        seed = params.seed if params.seed is not None else _mix(self._seed, self._num_requests)
        self._num_requests += 1
        stop_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        for index in range(request.n):
            self.batcher.add(
                Sequence(
                    request_id=request.request_id,
                    index=index,
                    token_ids=list(request.prompt_token_ids),
                    num_prompt_tokens=len(request.prompt_token_ids),
                    sampling=params,
                    seed=_mix(seed, index),
                    stop_token_ids=stop_token_ids,
                    terms=request.terms,
                )
            )

    def abort(self, request: AbortRequest) -> None:
        """End sequences now; their blocks are free when this returns."""
        self.batcher.abort(request.request_id, request.index)

    def step(self) -> StepOutput:
        """End what is past its deadline, then compute one step."""
        started = time.monotonic()
        outputs = self.batcher.expire(started)
        if self.has_work:
            plan = self.batcher.schedule(started)
            result = self.executor.execute(plan)
            outputs += self.batcher.update(plan, result)
            self.batcher.observe(plan, time.monotonic() - started)
        return StepOutput(outputs, self.batcher.stats())

    def prepare(self) -> bool:
        """Use an idle moment, of some milliseconds, for steps to come; False if there is nothing to do."""
        return self.executor.prepare(self.batcher.kv_cache.num_ever_taken)

    def stats(self) -> EngineStats:
        """The load at this moment."""
        return self.batcher.stats()

    def _warm_up(self) -> None:
        """Compute a token or two, so that libraries build their kernels before the first request."""
        params = SamplingParams(max_tokens=min(2, self.info.max_seq_len - 1), temperature=0.0, ignore_eos=True)
        self.add(GenerateRequest("warm-up", [0], params, 1, Terms(time.monotonic())))
        while self.has_work:  # unlike in `step`, nobody learns from how long these take
            plan = self.batcher.schedule(time.monotonic())
            self.batcher.update(plan, self.executor.execute(plan))
        self._num_requests = 0
        self.batcher.check_idle()


def _mix(seed: int, number: int) -> int:
    """A new seed from a seed and a number, so that streams do not run into each other."""
    return int(uniform(seed, number) * (1 << 53))


def _load_model(
    source: ModelSource,
    model_config: ModelConfig,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    max_seq_len: int,
    *,
    progress: bool,
) -> Decoder:
    try:
        ops = resolve_ops(config.kernels, device, dtype)
    except KernelUnavailableError as error:
        raise ConfigError(str(error)) from None
    tensors = open_tensors(source, model_config)
    weights = Weights(
        tensors,
        device,
        dtype,
        fp8_block=model_config.weight_block_size,
        progress=progress,
        int8=model_config.int8,
        quantizes=lambda layer: config.quantization == "int8" and (model_config.int8 is None or layer == "lm_head"),
    )
    try:
        return Decoder(model_config, weights, ops, max_seq_len)
    except (RuntimeError, ValueError, MemoryError) as error:  # sizes that no memory holds, or that contradict
        raise ModelError(f"{source.path} cannot be loaded: {str(error).partition(chr(10))[0]}") from error


def _make_batcher(config: EngineConfig, num_blocks: int, device: torch.device) -> DynamicBatcher:
    return DynamicBatcher(
        KVCacheManager(num_blocks, config.block_size, prefix_caching=config.prefix_caching == "on"),
        config.max_batch_size,
        config.max_batched_tokens or max(config.max_batch_size, _DEFAULT_BATCHED_TOKENS[device.type]),
        policy=config.policy,
        target_itl=None if config.target_itl is None else config.target_itl / 1000,
        prefill_share=config.prefill_share,
    )


def _max_seq_len(config: EngineConfig, model_config: ModelConfig) -> int:
    limit = model_config.max_position_embeddings
    if (
        config.max_seq_len is not None
        and config.max_seq_len > limit
        and model_config.rope_scaling.get("rope_type") != "dynamic"
    ):
        raise ConfigError(
            f"--max-seq-len is {config.max_seq_len}; the model was made for {limit} (max_position_embeddings)"
        )
    return config.max_seq_len or limit


def _cache_scales(config: EngineConfig, model: Decoder) -> tuple[int, ...] | None:
    """How many scales each thing cached has, or None where the cache is not of int8."""
    if config.kv_cache_dtype != "int8":
        return None
    if model.config.indexer is not None:
        raise ConfigError("--kv-cache-dtype is int8; for a model with an indexer (V3.2) only auto is valid")
    if model.ops.name == "flash-attn":
        raise ConfigError("--kv-cache-dtype is int8, which flash-attn does not read; valid with it is --kernels torch")
    return model.cache_scales()


def _num_kv_blocks(
    config: EngineConfig,
    model: Decoder,
    max_seq_len: int,
    dtype: torch.dtype,
    scales: tuple[int, ...] | None,
    device: torch.device,
) -> int:
    """The pool's size: as told, or what memory allows, but never more than a full batch of whole sequences can hold."""
    block_bytes = KVCachePool.bytes_per_block(
        model.cache_shapes(), model.config.num_hidden_layers, config.block_size, dtype, scales
    )
    if config.num_kv_blocks is not None or config.kv_cache_memory is not None:
        num_blocks = config.num_kv_blocks or int(min(config.kv_cache_memory or 0, 1e9) * devices.GIB) // block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"--kv-cache-memory is {config.kv_cache_memory} GiB; one block has {block_bytes / devices.GIB:.3g}"
            )
        if num_blocks * block_bytes > (free := devices.available_bytes(device)):
            raise ConfigError(
                f"a KV cache of {num_blocks} blocks (--num-kv-blocks or --kv-cache-memory) needs "
                f"{num_blocks * block_bytes / devices.GIB:.4g} GiB; {free / devices.GIB:.4g} are free"
            )
        return num_blocks
    useful = config.max_batch_size * -(-max_seq_len // config.block_size)
    return max(1, min(devices.default_kv_cache_bytes(device) // block_bytes, useful))
