"""What the running firewall counts, as Prometheus metric families. Pure: the daemon's status in, families out.

Names beginning with ``aws_networkfirewall_`` are those of CloudWatch's namespace ``AWS/NetworkFirewall`` (metric
``ReceivedPackets``, dimensions ``Engine``, ``CustomAction``), written as its exporters write them; ``nfw_`` is our own.

A worker's counters die with it, and a swap replaces all of them. So that no series ever goes back, :class:`Totals`
keeps what each process counted last; what it counted after the last look is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

Key = tuple[str, tuple[str, ...]]  # metric, values of its labels
Source = tuple[Any, ...]  # who counted; first ``PROCESS`` for what lives only as long as its process
Counts = dict[Key, float]

RULE_SERIES = 1000  # rules with a series of their own; what the others count is told under ``OTHER``
SERIES = 20_000  # of all counters together; more are not kept
OTHER = "other"
PROCESS = "process"

# name -> (help, labels). Counters; the exposition adds ``_total``.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nfw_packets": ("Packets that reached a stage, by what it did with them.", ("stage", "verdict")),
    "nfw_bytes": ("Bytes from the IP header on that reached a stage.", ("stage",)),
    "nfw_verdicts": ("Packets, of stage tls and decrypted sessions, by reason.", ("stage", "verdict", "reason")),
    "nfw_alerts": ("Alerts, before they are written to any log.", ()),
    "nfw_rule_hits": ("Matches of a rule. At most 1000 rules; the rest is rule=\"other\".", ("engine", "rule")),
    "nfw_policy_packets": ("Packets of a counter named in the policy.", ("counter",)),
    "nfw_flows_offloaded": ("Flows whose rest the kernel forwards by itself.", ()),
    "nfw_kernel_packets": ("Packets counted by the rules in the kernel.", ("counter",)),
    "nfw_queue_dropped_packets": ("Packets the kernel dropped before a worker saw them.", ("queue", "cause")),
    "nfw_tls_sessions": ("TLS sessions ended, by status.", ("status",)),
    "nfw_tls_plaintext_bytes": ("Decrypted bytes.", ("direction",)),
    "nfw_tls_timeouts": ("TLS sessions ended because somebody took too long.", ()),
    "nfw_leaf_cache_requests": ("Certificates wanted for clients, by whether the cache had them.", ("result",)),
    "nfw_revocation_requests": ("Certificates asked about, by whether a worker knew the answer.", ("result",)),
    "nfw_revocation_answers": ("What the fetcher found, by method and status, and how it failed.", ("answer",)),
    "nfw_log_dropped_lines": ("Log lines that were given up so that no packet waits.", ("cause",)),
    "nfw_regex_gave_up": ("Regular expressions that were given up because they cost too much.", ()),
    "nfw_bugs": ("Exceptions met in packets or sessions, each of which cost one.", ()),
    "nfw_process_restarts": ("Processes of generations started again after they died.", ()),
    "aws_networkfirewall_received_packets": ("ReceivedPackets.", ("engine",)),
    "aws_networkfirewall_received_bytes": ("ReceivedBytes.", ("engine",)),
    "aws_networkfirewall_passed_packets": ("PassedPackets.", ("engine",)),
    "aws_networkfirewall_dropped_packets": ("DroppedPackets: by rules and default actions.", ("engine",)),
    "aws_networkfirewall_rejected_packets": ("RejectedPackets.", ("engine",)),
    "aws_networkfirewall_invalid_dropped_packets": ("InvalidDroppedPackets.", ("engine",)),
    "aws_networkfirewall_other_dropped_packets": ("OtherDroppedPackets: limits and stream errors.", ("engine",)),
    "aws_networkfirewall_stream_exception_policy_packets": ("StreamExceptionPolicyPackets.", ("engine",)),
    "aws_networkfirewall_packets": ("Packets of a custom action.", ("custom_action",)),
    "aws_networkfirewall_tls_errors": ("TLSErrors: sessions that failed.", ()),
    "aws_networkfirewall_tls_timed_out_connections": ("TLSTimedOutConnections.", ()),
}  # fmt: skip

# Statuses that are no error of TLS.
_NO_ERROR = frozenset(("ok", "bypassed", "policy", "aborted", "ended"))
_HANDSHAKE = "nfw_tls_handshake_seconds"
_REVOCATION = "nfw_revocation_seconds"
_HISTOGRAMS = {
    _HANDSHAKE: "From accepting a client to both TLS handshakes done.",
    _REVOCATION: "What a TLS session waited for an answer about revocation that was not known.",
}


class Totals:
    """Counters of many short-lived sources, added up so that no sum ever decreases. Bounded by ``bound`` series."""

    def __init__(self, bound: int = SERIES) -> None:
        self.bound = bound
        self.refused = 0  # values that found no room
        self._gone: Counts = {}
        self._last: dict[Source, Counts] = {}

    def update(self, sources: Mapping[Source, Counts]) -> None:
        """The latest counts of each source. A process that is missing has ended; the kernel only was not asked."""
        for name in list(self._last):
            if name[0] == PROCESS and name not in sources:
                self._fold(self._last.pop(name))
        for name, counts in sources.items():
            last = self._last.get(name, {})
            if any(counts.get(key, value) < value for key, value in last.items()):
                self._fold(last)  # it began anew
                last = {}
            self._last[name] = {**last, **counts}

    def sums(self) -> Counts:
        """The totals so far."""
        sums = dict(self._gone)
        for counts in self._last.values():
            for key, value in counts.items():
                if key in sums or len(sums) < self.bound:
                    sums[key] = sums.get(key, 0.0) + value
        return sums

    def _fold(self, counts: Counts) -> None:
        for key, value in counts.items():
            if key in self._gone or len(self._gone) < self.bound:
                self._gone[key] = self._gone.get(key, 0.0) + value
            else:
                self.refused += 1


class Rules:
    """Which rules have a series of their own: the first :data:`RULE_SERIES` that were hit."""

    def __init__(self, bound: int = RULE_SERIES) -> None:
        self.bound = bound
        self._known: set[tuple[str, str]] = set()

    def label(self, engine: str, rule: str) -> str:
        key = (engine, rule)
        if key not in self._known:
            if len(self._known) >= self.bound:
                return OTHER
            self._known.add(key)
        return rule


def sources(status: Mapping[str, Any], rules: Rules) -> dict[Source, Counts]:
    """Counters of each process, of each queue and of the kernel's rules, from the answer to ``status``."""
    generation = status.get("generation", 0)
    found: dict[Source, Counts] = {}
    for process in status.get("processes") or ():
        counts: Counts = {}
        _process(process, counts, rules)
        found[PROCESS, generation, process.get("name"), process.get("pid")] = counts
    if "restarts" in status:
        found[PROCESS, generation, "leader", status.get("since")] = {
            ("nfw_process_restarts", ()): float(status["restarts"])
        }
    kernel = status.get("kernel") or {}
    for queue, values in (kernel.get("queues") or {}).items():
        found["queue", queue] = {
            ("nfw_queue_dropped_packets", (str(queue), cause)): float(values.get(name, 0))
            for name, cause in (("dropped", "queue_full"), ("user_dropped", "socket_full"))
        }
    counters = kernel.get("counters") or {}
    if counters:
        found["kernel",] = {("nfw_kernel_packets", (name,)): float(value) for name, value in counters.items()}
        found["kernel",][_aws("dropped_packets", "stateful")] = float(counters.get("dropped", 0))
        found["kernel",][_aws("invalid_dropped_packets", "stateless")] = float(counters.get("fragments_other", 0))
    log = status.get("log_writer") or {}
    if log:
        found["log",] = {
            ("nfw_log_dropped_lines", (str(cause),)): float(lines)
            for cause, lines in (log.get("dropped") or {}).items()
        }
    return found


def _process(process: Mapping[str, Any], counts: Counts, rules: Rules) -> None:
    def add(metric: str, labels: tuple[str, ...], value: float) -> None:
        key = (metric, labels)
        counts[key] = counts.get(key, 0.0) + float(value)

    seen = process.get("counts") or {}
    if "alert" in seen:
        add("nfw_alerts", (), seen["alert"])
    for name in ("offloaded", "half_offloaded"):
        if name in seen:
            add("nfw_flows_offloaded", (), seen[name])
    if "pcre_gave_up" in process:
        add("nfw_regex_gave_up", (), sum(process["pcre_gave_up"].values()))
    if "bugs" in process:
        add("nfw_bugs", (), process["bugs"])
    if "log_dropped" in process:
        add("nfw_log_dropped_lines", ("writer_busy",), process["log_dropped"])
    if process.get("stateless_default_hits"):
        add("nfw_rule_hits", ("stateless", "default"), process["stateless_default_hits"])
    for engine, name in (("stateless", "stateless_hits"), ("stateful", "rule_hits"), ("tls", "scope_hits")):
        for rule, hits in (process.get(name) or {}).items():
            if hits:
                add("nfw_rule_hits", (engine, rules.label(engine, str(rule))), hits)
    for name, value in (process.get("counters") or {}).items():
        add("nfw_policy_packets", (str(name),), value)
        add("aws_networkfirewall_packets", (str(name),), value)
    verdicts = {tuple(key.split("/", 2)): value for key, value in (process.get("verdicts") or {}).items()}
    for key, value in verdicts.items():
        if len(key) == 3:
            add("nfw_verdicts", key, value)
    packets = process.get("packets")
    if packets is not None:
        _packets(process, packets, verdicts, add)
    if "sessions" in process:
        _sessions(process, seen, add)
    elif process.get("name") == "nfw fetcher":
        for answer, value in seen.items():
            add("nfw_revocation_answers", (str(answer),), value)


def _packets(process: Mapping[str, Any], packets: Mapping[str, int], verdicts: Mapping[Any, int], add: Any) -> None:
    received, forwarded, tls = packets["received"], packets["forwarded"], packets["tls"]

    def decided(stage: str, *outcomes: str) -> int:
        return sum(n for (where, verdict, _), n in verdicts.items() if where == stage and verdict in outcomes)

    passed = decided("stateless", "pass")
    add("nfw_packets", ("stateless", "pass"), passed)
    add("nfw_packets", ("stateless", "drop"), decided("stateless", "drop"))
    add("nfw_packets", ("stateless", "forward"), forwarded)
    add("nfw_bytes", ("stateless",), packets["received_bytes"])
    invalid = dict.fromkeys(("stateless", "stateful"), 0)
    other = exception = 0
    for (stage, verdict, reason), count in verdicts.items():
        if stage != "flow" or verdict not in ("drop", "reject"):
            continue
        if reason.startswith("invalid_"):
            invalid["stateless" if reason == "invalid_packet" else "stateful"] += count
        elif reason == "stream_exception":
            exception += count
        else:
            other += count
    refused = packets["dropped"] - decided("stateless", "drop") - invalid["stateless"]
    let_out = max(0, forwarded - tls - refused - int(process.get("held_packets", 0)))
    add("nfw_packets", ("stateful", "pass"), let_out)
    add("nfw_packets", ("stateful", "drop"), decided("flow", "drop") + decided("stateful", "drop"))
    add("nfw_packets", ("stateful", "reject"), decided("flow", "reject") + decided("stateful", "reject"))
    add("nfw_packets", ("stateful", "tls"), tls)
    add("nfw_bytes", ("stateful",), packets["forwarded_bytes"])
    midstream = verdicts.get(("flow", "drop", "stream_exception"), 0)
    for metric, engine, value in (
        ("received_packets", "stateless", received),
        ("received_packets", "stateful", forwarded - tls),
        ("received_bytes", "stateless", packets["received_bytes"]),
        ("received_bytes", "stateful", packets["forwarded_bytes"]),
        ("passed_packets", "stateless", passed),
        ("passed_packets", "stateful", let_out),
        ("dropped_packets", "stateless", decided("stateless", "drop")),
        ("dropped_packets", "stateful", decided("stateful", "drop") + midstream),
        ("rejected_packets", "stateful", decided("stateful", "reject") + decided("flow", "reject")),
        ("invalid_dropped_packets", "stateless", invalid["stateless"]),
        ("invalid_dropped_packets", "stateful", invalid["stateful"]),
        ("other_dropped_packets", "stateful", other),
        ("stream_exception_policy_packets", "stateful", exception),
    ):
        add(*_aws(metric, engine), value)


def _sessions(process: Mapping[str, Any], seen: Mapping[str, int], add: Any) -> None:
    errors = 0
    for name, value in seen.items():
        if name.startswith("tls_"):
            status = name.removeprefix("tls_")
            add("nfw_tls_sessions", (status,), value)
            errors += 0 if status in _NO_ERROR else value
    add("aws_networkfirewall_tls_errors", (), errors)
    timed_out = seen.get("timed_out", 0)
    add("nfw_tls_timeouts", (), timed_out)
    add("aws_networkfirewall_tls_timed_out_connections", (), timed_out)
    for direction, value in zip(("to_server", "to_client"), process.get("bytes") or (), strict=False):
        add("nfw_tls_plaintext_bytes", (direction,), value)
    revocation = process.get("revocation") or {}
    for metric, cache in (
        ("nfw_leaf_cache_requests", process.get("leaf_cache") or {}),
        ("nfw_revocation_requests", revocation),
    ):
        for name, result in (("hits", "hit"), ("misses", "miss")):
            add(metric, (result,), cache.get(name, 0))
    for metric, times in ((_HANDSHAKE, process.get("handshakes") or {}), (_REVOCATION, revocation.get("waits") or {})):
        bounds = [str(bound) for bound in times.get("bounds") or ()] + ["+Inf"]
        for bound, value in zip(bounds, times.get("buckets") or (), strict=False):
            add(metric, (bound,), value)
        add(metric, ("sum",), times.get("seconds", 0.0))


def _aws(metric: str, engine: str) -> Key:
    return f"aws_networkfirewall_{metric}", (engine,)


def families(status: Mapping[str, Any] | None, sums: Counts) -> Iterator[Metric]:
    """Everything to be exposed. ``status`` None: the daemon did not answer; the counters are what they were."""
    answered = status is not None
    status = status or {}
    firewall = str(status.get("name") or "")
    by_metric: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for (metric, labels), value in sums.items():
        by_metric.setdefault(metric, []).append((labels, value))
    for metric, (text, labels) in COUNTERS.items():
        family = CounterMetricFamily(metric, text, labels=labels)
        for values, value in sorted(by_metric.get(metric, ())):
            family.add_metric(values, value)
        if not labels and not by_metric.get(metric):
            family.add_metric((), 0.0)
        yield family
    for metric, text in _HISTOGRAMS.items():
        yield _histogram(metric, text, dict(by_metric.get(metric, ())))
    yield from _gauges(status, answered, firewall)


def _histogram(metric: str, text: str, values: Mapping[tuple[str, ...], float]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric, text)
    total = 0.0
    buckets = []
    for bound in sorted((labels[0] for labels in values if labels[0] != "sum"), key=float):
        total += values[bound,]
        buckets.append((bound, total))
    if buckets:
        family.add_metric((), buckets, values.get(("sum",), 0.0))
    return family


def _monitors(status: Mapping[str, Any]) -> bool:
    return status.get("mode") == "monitor"


def _gauges(status: Mapping[str, Any], answered: bool, firewall: str) -> Iterator[Metric]:
    processes = list(status.get("processes") or ())
    info = GaugeMetricFamily("nfw_info", "Always 1.", labels=("version", "policy"))
    info.add_metric((str(status.get("version", "")), firewall), 1.0)
    yield info
    yield GaugeMetricFamily("nfw_scrape_complete", "1 when the daemon answered in time.", value=float(answered))
    yield GaugeMetricFamily(
        "nfw_filtering",
        "1 when a policy filters, 0 when the path is closed.",
        value=float(status.get("state") == "filtering"),
    )
    yield GaugeMetricFamily(
        "nfw_monitoring", "1 when the policy is in mode monitor: nothing is blocked.", value=float(_monitors(status))
    )
    yield GaugeMetricFamily(
        "nfw_policy_unconfirmed_seconds",
        "Until the former policy comes back; 0 when nothing waits for confirmation.",
        value=float((status.get("waiting") or {}).get("seconds_left", 0)),
    )
    yield GaugeMetricFamily(
        "nfw_generation", "Number of the generation that filters.", value=status.get("generation", 0)
    )
    yield GaugeMetricFamily(
        "nfw_generation_start_time_seconds", "When it was started.", value=float(status.get("since", 0.0))
    )
    yield _labelled(
        "nfw_process_up",
        "1 when the process answered.",
        "process",
        ((str(one.get("name", "")), float(_answered(one))) for one in processes),
    )
    queues = (status.get("kernel") or {}).get("queues") or {}
    yield _labelled(
        "nfw_queue_packets",
        "Packets in a netfilter queue, held ones included.",
        "queue",
        ((str(queue), float(values.get("queued", 0))) for queue, values in queues.items()),
    )
    for name, text, key in (
        ("nfw_flows", "Flows in the flow tables.", "flows"),
        ("nfw_flows_max", "Room in the flow tables.", "max_flows"),
        ("nfw_held_packets", "Packets that wait for the rest of what they begin.", "held_packets"),
        ("nfw_tls_open_sessions", "TLS sessions that are open.", "sessions"),
        ("nfw_tls_sessions_max", "TLS sessions there is room for.", "max_sessions"),
        ("nfw_leaf_cache_entries", "Certificates in the caches.", "leafs"),
        ("nfw_revocations_known", "Answers about revocation that the workers keep.", "revocations"),
        ("nfw_rules_omitted", "Rules with hits that the workers left out of their answers.", "rules_omitted"),
    ):
        yield GaugeMetricFamily(name, text, value=float(sum(one.get(key) or 0 for one in processes)))


def _answered(process: Mapping[str, Any]) -> bool:
    """The key holder is never asked: it has the CA's key, and nothing to tell."""
    return bool(process.get("pid")) and (len(process) > 2 or str(process.get("name", "")).endswith("keyholder"))


def _labelled(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value in values:
        family.add_metric((value[0],), value[1])
    return family
