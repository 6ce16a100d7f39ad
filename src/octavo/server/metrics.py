"""Prometheus metrics under vLLM's names, so that its dashboards, routers and benchmark tools work unchanged.

Requests are counted by choice, as vLLM does: a prompt with `n=4` is four. At any time

    octavo:requests_received = vllm:request_success (finished_reason stop, length, abort, error)
                               + vllm:admission_rejections + choices running or waiting
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPMethod
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from octavo.deployments import Deployments
from octavo.engine.request import FinishReason, Output, Request

# vLLM's bounds, and finer ones below them: a small model's step takes less than vLLM's first bucket.
TTFT_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BOUNDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
CHOICE_BOUNDS = (1, 2, 5, 10, 20)
# As vLLM counts the tokens of a request, whatever the longest context is: deployments come and go.
COUNT_BOUNDS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))

METHODS = frozenset(HTTPMethod)
"""Whose names are labels."""

LABELS = ("model_name", "engine")
ENGINE = "0"


def new_registry() -> CollectorRegistry:
    """A registry with what Prometheus knows of every process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class HttpMetrics(Collector):
    """Every route's responses. As in `StepTally` they are plain numbers, which take a fifth of the time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._responses: dict[tuple[str, str, int], int] = {}
        self._times: dict[tuple[str, str], _Times] = {}
        registry.register(self)

    def observe(self, method: str, handler: str, status: int, seconds: float) -> None:
        """Count one response. Clients may send any method: those that HTTP does not know share one label."""
        if method not in METHODS:
            method = "other"
        key = (method, handler, status)
        self._responses[key] = self._responses.get(key, 0) + 1
        times = self._times.get((method, handler))
        if times is None:
            times = self._times[method, handler] = _Times()
        times.buckets[bisect_left(REQUEST_BOUNDS, seconds)] += 1
        times.seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """A counter and a histogram."""
        requests = CounterMetricFamily("http_requests", "HTTP responses.", labels=("method", "handler", "status"))
        for (method, handler, status), count in self._responses.items():
            requests.add_metric((method, handler, str(status)), count)
        yield requests
        durations = HistogramMetricFamily(
            "http_request_duration_seconds",
            "From a request's arrival to the end of its response.",
            labels=("method", "handler"),
        )
        bounds = [*map(floatToGoString, REQUEST_BOUNDS), "+Inf"]
        for labels, times in self._times.items():
            buckets = list(zip(bounds, accumulate(times.buckets), strict=True))
            durations.add_metric(labels, buckets, times.seconds)
        yield durations


class _Times:
    """How long the responses of a route took. Attributes: buckets: between the bounds. seconds: of all."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(REQUEST_BOUNDS) + 1)
        self.seconds = 0.0


class EngineCollector(Collector):
    """Reads the engines' own figures at the moment of the scrape, so that steps cost nothing."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    def collect(self) -> Iterator[Metric]:
        """One family after the other, with a sample per deployment."""
        for name, text, attribute in (
            ("vllm:num_requests_running", "Choices being computed.", "running"),
            ("vllm:num_requests_waiting", "Choices in the queue.", "waiting"),
            ("vllm:kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", "kv_usage"),
        ):
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for each in self._deployments.language:
                gauge.add_metric((each.name, ENGINE), getattr(each.engine.stats, attribute))
            yield gauge
        for name, text, attribute in (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", "prefix_queries"),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", "prefix_hits"),
            ("vllm:num_preemptions", "Choices that lost their pages for a while.", "preemptions"),
            ("octavo:engine_steps", "Steps the engine ran.", "steps"),
        ):
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for each in self._deployments.language:
                counter.add_metric((each.name, ENGINE), getattr(each.engine.stats, attribute))
            yield counter
        restarts = CounterMetricFamily(
            "octavo:engine_restarts", "Times that the engine died and was started again.", labels=LABELS
        )
        for each in self._deployments.language:
            restarts.add_metric((each.name, ENGINE), each.engine.restarts)
        yield restarts
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache.", labels=(*LABELS, "block_size", "num_gpu_blocks")
        )
        for each in self._deployments.language:
            if each.engine.info is not None:
                info = each.engine.info
                cache.add_metric((each.name, ENGINE, str(info.page_size), str(info.num_pages)), 1.0)
        yield cache


class StepTally:
    """One deployment's generated tokens and the times between them. Every step of every choice adds to these, so they
    are plain numbers: an observation of a `Histogram` takes ten times as long."""

    def __init__(self) -> None:
        self.tokens = 0
        self.gaps = [0] * (len(TOKEN_BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a choice's new tokens, so many seconds after the ones before."""
        self.tokens += tokens
        gap = seconds / max(tokens, 1)
        self.gaps[bisect_left(TOKEN_BOUNDS, gap)] += 1
        self.seconds += gap


class TallyCollector(Collector):
    """Shows the tallies as metrics."""

    def __init__(self, tallies: Mapping[str, StepTally]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """A counter and a histogram."""
        tokens = CounterMetricFamily("vllm:generation_tokens", "Tokens generated.", labels=LABELS)
        gaps = HistogramMetricFamily("vllm:inter_token_latency_seconds", "Between a choice's tokens.", labels=LABELS)
        bounds = [*map(floatToGoString, TOKEN_BOUNDS), "+Inf"]
        for model, tally in self._tallies.items():
            tokens.add_metric((model, ENGINE), tally.tokens)
            buckets = list(zip(bounds, accumulate(tally.gaps), strict=True))
            gaps.add_metric((model, ENGINE), buckets, tally.seconds)
        yield tokens
        yield gaps


class GenerationMetrics:
    """What the deployments of a server generate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        families: list[Counter | Histogram] = []

        def counter(name: str, text: str) -> Counter:
            families.append(family := Counter(name, text, LABELS, registry=registry))
            return family

        def histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
            families.append(family := Histogram(name, text, LABELS, buckets=bounds, registry=registry))
            return family

        self.received = counter("octavo:requests_received", "Choices asked for.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self.cached_tokens = counter("vllm:prompt_tokens_cached", "Prompt tokens that the prefix cache had.")
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT_BOUNDS)
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds",
            "A choice's time per token but the first.",
            TOKEN_BOUNDS,
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to a choice's last token.", REQUEST_BOUNDS)
        self.queue = histogram("vllm:request_queue_time_seconds", "In the engine's queue.", REQUEST_BOUNDS)
        self.prefill = histogram("vllm:request_prefill_time_seconds", "From queue to first token.", REQUEST_BOUNDS)
        self.decode = histogram("vllm:request_decode_time_seconds", "First token to last.", REQUEST_BOUNDS)
        self.inference = histogram("vllm:request_inference_time_seconds", "From the queue to the end.", REQUEST_BOUNDS)
        self.request_prompt = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", COUNT_BOUNDS)
        self.request_generation = histogram("vllm:request_generation_tokens", "Tokens of a choice.", COUNT_BOUNDS)
        self.request_longest = histogram(
            "vllm:request_max_num_generation_tokens", "Tokens of a request's longest choice.", COUNT_BOUNDS
        )
        self.params_n = histogram("vllm:request_params_n", "Choices per request.", CHOICE_BOUNDS)
        self.params_max_tokens = histogram("vllm:request_params_max_tokens", "max_tokens of a request.", COUNT_BOUNDS)
        self.ended = Counter(
            "vllm:request_success", "Choices that ended.", (*LABELS, "finished_reason"), registry=registry
        )
        self.rejected = Counter(
            "vllm:admission_rejections", "Choices that were not taken.", (*LABELS, "reason"), registry=registry
        )
        self.tallies: dict[str, StepTally] = {}
        self._families = families
        registry.register(TallyCollector(self.tallies))

    def add(self, deployment: str) -> None:
        """Begin a deployment's series: those that are there from the start have a rate from the first request on."""
        if deployment in self.tallies:
            return
        self.tallies[deployment] = StepTally()
        for family in self._families:
            family.labels(deployment, ENGINE)
        for reason in set(FinishReason) - {FinishReason.TIMEOUT}:  # which counts as a length
            self.ended.labels(deployment, ENGINE, reason)


class Trace:
    """One engine request's way through the counters: it is received, then every choice of it ends in one of four ways.

    Args:
        arrived: `time.perf_counter()` when the client's request arrived.
    """

    def __init__(self, metrics: GenerationMetrics, model: str, request: Request, arrived: float) -> None:
        self._metrics = metrics
        self._labels = (model, ENGINE)
        self._params = request.params
        self._prompt_tokens = len(request.prompt_token_ids)
        self._arrived = arrived
        self._open = request.params.n
        self._longest = 0
        self._queue_seconds = 0.0
        self._last: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._tally = metrics.tallies[model]
        metrics.received.labels(*self._labels).inc(self._open)

    def step(self, output: Output, tokens: int, now: float) -> None:
        """A choice got so many tokens."""
        last = self._last.get(output.index)
        self._last[output.index] = now
        if last is not None:
            self._tally.add(tokens, now - last)
            return
        self._tally.tokens += tokens
        if not self._first:
            self._note_prefill(output, now)
        self._first[output.index] = now

    def _note_prefill(self, output: Output, now: float) -> None:
        metrics, labels = self._metrics, self._labels
        metrics.prompt_tokens.labels(*labels).inc(self._prompt_tokens)
        metrics.cached_tokens.labels(*labels).inc(output.cached_tokens or 0)
        metrics.ttft.labels(*labels).observe(now - self._arrived)
        self._queue_seconds = output.queue_seconds or 0.0
        metrics.queue.labels(*labels).observe(self._queue_seconds)
        metrics.prefill.labels(*labels).observe(output.prefill_seconds or 0.0)

    def finish(self, index: int, reason: str, tokens: int, now: float) -> None:
        """A choice ended with so many tokens in all."""
        metrics, labels = self._metrics, self._labels
        self._open -= 1
        self._longest = max(self._longest, tokens)
        decode = now - self._first[index]
        e2e = now - self._arrived
        metrics.ended.labels(*labels, reason).inc()
        metrics.e2e.labels(*labels).observe(e2e)
        metrics.decode.labels(*labels).observe(decode)
        metrics.inference.labels(*labels).observe(max(e2e - self._queue_seconds, 0.0))
        metrics.request_generation.labels(*labels).observe(tokens)
        if tokens > 1:
            metrics.tpot.labels(*labels).observe(decode / (tokens - 1))
        if self._open == 0:
            metrics.request_prompt.labels(*labels).observe(self._prompt_tokens)
            metrics.request_longest.labels(*labels).observe(self._longest)
            metrics.params_n.labels(*labels).observe(self._params.n)
            metrics.params_max_tokens.labels(*labels).observe(self._params.max_tokens)

    def reject(self, reason: str) -> None:
        """The request was not taken; or what it asks for turned out on the way to be impossible."""
        if self._first:
            self.fail()
            return
        self._metrics.rejected.labels(*self._labels, reason).inc(self._open)
        self._open = 0

    def fail(self) -> None:
        """The engine gave up on what was left of the request."""
        self._end_rest(FinishReason.ERROR)

    def close(self) -> None:
        """Nobody waits for the request any more: choices that have not ended are aborted."""
        self._end_rest(FinishReason.ABORT)

    def _end_rest(self, reason: FinishReason) -> None:
        self._metrics.ended.labels(*self._labels, reason).inc(self._open)
        self._open = 0
