"""What Prometheus reads at /metrics."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from foveal.serve.limits import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The measurements of one server, in a registry of its own.

    Args:
        admission: whose counts are shown.
        buckets: sizes of batches.
    """

    def __init__(self, admission: Admission, *, buckets: Sequence[int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("foveal_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "foveal_request_seconds",
            "From the first byte to the last.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rejections = Counter(
            "foveal_rejections", "Requests refused or given up, by code.", ["code"], registry=self.registry
        )
        self.batches = Histogram(
            "foveal_batch_images",
            "Images in a batch.",
            buckets=[float(size) for size in buckets],
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "foveal_batch_seconds", "Time of a batch in the engine.", buckets=_SECONDS, registry=self.registry
        )
        self.swaps = Counter("foveal_swaps", "Models exchanged, by outcome.", ["outcome"], registry=self.registry)
        self.waiting = Gauge("foveal_images_waiting", "Images in the queue of the engine.", registry=self.registry)
        accepted = Gauge("foveal_images_accepted", "Images accepted and not yet answered.", registry=self.registry)
        accepted.set_function(lambda: admission.images)
        held = Gauge("foveal_body_bytes", "Bytes of the bodies of these requests.", registry=self.registry)
        held.set_function(lambda: admission.bytes)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
