"""Keywords of Suricata that are refused here, by name, so that a rule never loads and then means something else."""

from __future__ import annotations

UNSUPPORTED: dict[str, str] = {
    name: why
    for why, names in {
        "needs scripts run by the engine": "lua luaxform",
        "needs data sets": "dataset datarep iprep",
        "needs whole files": "filemagic file.magic filesize",
        "is not built yet": "asn1 rpc l3_proto replace byterange config"
        " "
        "ssh.protoversion ssh.softwareversion ip.src ip.dst tenant_id ether.hdr sctp.hdr sctp.chunk_type "
        "sctp.chunk_cnt sctp.vtag sctp.chunk_data rdp.cookie template.buffer",
        "asks a category service of a cloud provider": "aws_domain_category aws_url_category",
    }.items()
    for name in names.split()
}
