"""Keywords of Suricata that are refused here, by name, so that a rule never loads and then means something else."""

from __future__ import annotations

UNSUPPORTED: dict[str, str] = {
    name: why
    for why, names in {
        "needs scripts run by the engine": "lua luaxform",
        "needs data sets": "dataset datarep iprep",
        "needs files kept or hashed": "filestore filemd5 filesha1 filesha256 filemagic file.magic filename fileext "
        "filesize",
        "needs a parser that is missing": "dce_iface dce_opnum dce_stub_data dcerpc.iface dcerpc.opnum "
        "dcerpc.stub_data smb.named_pipe smb_named_pipe smb.share smb_share smb.ntlmssp_user smb.ntlmssp_domain "
        "smb.version modbus cip_service enip_command dnp3_func dnp3_ind dnp3_obj dnp3_data dnp3.func dnp3.ind dnp3.obj "
        "dnp3.data krb5_msg_type krb5_cname krb5_sname krb5_err_code krb5.cname krb5.sname krb5.ticket_encryption "
        "krb5.weak_encryption nfs_procedure nfs_version nfs3_procedure sip.method sip.uri sip.request_line "
        "sip.response_line sip.stat_code sip.stat_msg sip.protocol sip.from sip.to sip.via sip.user_agent "
        "sip.content_type sip.content_length snmp.version snmp.community snmp.usm snmp.pdu_type snmp.trap_type "
        "mqtt.type mqtt.flags mqtt.qos mqtt.reason_code mqtt.protocol_version mqtt.connect.flags mqtt.connect.clientid "
        "mqtt.connect.username mqtt.connect.password mqtt.connect.willtopic mqtt.connect.willmessage "
        "mqtt.connack.session_present mqtt.publish.topic mqtt.publish.message mqtt.subscribe.topic "
        "mqtt.unsubscribe.topic rfb.name rfb.sectype rfb.secresult ike.init_spi ike.resp_spi ike.chosen_sa_attribute "
        "ike.exchtype ike.vendor ike.key_exchange_payload_length ike.nonce_payload_length ike.nonce_payload "
        "ike.key_exchange_payload rdp.cookie ldap.request.operation ldap.responses.operation "
        "websocket.flags websocket.mask websocket.opcode pgsql.query template.buffer",
        "is not built yet": "decode-event stream-event engine-event frame entropy subslice luaxform domain tld "
        "gunzip zlib_deflate asn1 rpc ftpbounce l3_proto replace byterange config http2.frametype http2.errorcode "
        "http2.priority http2.window http2.size_update http2.settings http2.header_name http2.header quic.ua "
        "quic.cyu.hash quic.cyu.string smtp.helo smtp.mail_from smtp.rcpt_to ftp.command "
        "ftp.command_data ftp.reply ftp.mode ftp.dynamic_port ftp.reply_received ftp.completion_code ftpdata_command "
        "tls.store tls.cert_chain_len tls_cert_notbefore tls_cert_notafter tls_cert_valid tls_cert_expired "
        "tls.fingerprint ssh.protoversion ssh.softwareversion igmp.type igmp.hdr vlan.id vlan.layers "
        "ip.src ip.dst email.from email.to email.subject email.url tenant_id",
        "asks a category service of a cloud provider": "aws_domain_category aws_url_category",
        "tests checksums, which are never verified inline": "ipv4-csum tcpv4-csum tcpv6-csum udpv4-csum "
        "udpv6-csum icmpv4-csum icmpv6-csum igmp-csum",
    }.items()
    for name in names.split()
}

# Parsed and compiled, but nothing evaluates or fills them yet: refused until the part named here is there. Taking a
# line away is all it then needs.
PENDING: dict[str, str] = {
    "websocket.payload": "waits for the inspector to go on with WebSocket after an HTTP upgrade to it",
    "file.name": "waits for a parser that gives file names",
}
