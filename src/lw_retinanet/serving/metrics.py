"""What the service counts, in the form of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters of one service; two services in a process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "lw_retinanet_"
        self.requests = Counter(f"{prefix}requests", "Requests by path and status.", ["path", "status"], registry=self.registry)
        self.latency = Histogram(f"{prefix}detect_seconds", "Head of a request to its answer.", buckets=_SECONDS, registry=self.registry)
        self.batches = Histogram(f"{prefix}batch_images", "Images in a batch.", buckets=_BATCHES, registry=self.registry)
        self.busy = Counter(f"{prefix}detector_busy_seconds", "Seconds in which the detector worked.", registry=self.registry)
        self.admitted = Gauge(f"{prefix}queue_requests", "Requests that wait or are worked on.", registry=self.registry)
        self.refused = Counter(f"{prefix}refused", "Requests that were refused, by reason.", ["code"], registry=self.registry)
        self.cancelled = Counter(f"{prefix}cancelled", "Requests whose client went away.", registry=self.registry)

    def text(self) -> bytes:
        """All of it as text."""
        return generate_latest(self.registry)
