"""The policies the grade is run under: one for nearly everything, others for what one policy cannot show."""

from __future__ import annotations

_TLS = """\
name: grade-{name}
workers: 1
stateless: {{default: forward}}
tls:
  ca: {{certificate: ca.pem, private_key: ca.key}}
  trust: [anchors.pem]
  distrust: [distrust.pem]
  scopes: [{{destination_ports: ["20000-29999"]}}]
  fetch_issuers: true
  on_failure: {action}
  revocation: {{revoked: {revoked}, unknown: {revoked}, allow: [203.0.113.0/24], cache: answers}}
{more}open_flows: {{which: all, action: drop}}
flows: {{max_flows: 50000}}
stateful:
  order: action
  stream_exception: drop
  rule_files: [grade.rules]
"""

RULES = """\
drop http any any -> any any (msg:"grade uri"; http.uri; content:"/forbidden"; startswith; sid:1;)
drop http2 any any -> any any (msg:"grade uri h2"; http.uri; content:"/forbidden"; startswith; sid:2;)
drop http any any -> any any (msg:"grade fronting"; http.host; content:"hidden.grade.test"; sid:3;)
drop http2 any any -> any any (msg:"grade fronting h2"; http.host; content:"hidden.grade.test"; sid:4;)
alert http any any -> any any (msg:"grade seen"; http.request_body; content:"GRADE-END-OF-BODY"; sid:5;)
drop tls any any -> any any (msg:"grade sni"; tls.sni; content:"denied.grade.test"; sid:6;)
"""


def _policy(name: str, action: str = "reject", revoked: str = "", more: str = "") -> str:
    return _TLS.format(name=name, action=action, revoked=revoked or action, more=more)


_BYPASS = "  bypass: [{sni: [site-b.test, pinned.grade.test]}]\n  resolvers: [203.0.113.10]\n"

POLICIES = {
    "main": _policy("main", more="  without_sni: address\n"),
    "drop": _policy("drop", "drop"),
    "pass": _policy("pass", revoked="pass"),
    "sct": _policy("sct", more="  transparency: {logs: [sct-log.pem], require: true}\n").replace(
        "trust: [anchors.pem]", "trust: [system, anchors.pem]"
    ),
    "bypass": _policy("bypass", more=_BYPASS),
    "proof": _policy("proof", more=_BYPASS + "  bypass_proof: [resolver, certificate]\n"),
    "rotated": _policy("rotated").replace("ca.pem", "rotated/ca.pem").replace("ca.key", "rotated/ca.key"),
    "two": _policy("two").replace("workers: 1", "workers: 2").replace("50000", "50000, tcp_idle: 6000"),
    "quiet": _policy("quiet", more="  actions: {not_tls: drop}\n"),
    "monitor": _policy("monitor").replace("workers: 1", "workers: 1\nmode: monitor"),
    "recheck": _policy("recheck").replace("cache: answers", "cache: answers, recheck: true"),
}
