"""Every bound of the application parsers, in one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AppLimits:
    """Sizes in bytes. What happens at a bound is named with it; ``gave_up`` leaves the flow to its stream exception
    policy."""

    # One HTTP head or HTTP/2 header block, decoded or not. Servers refuse from 8 KiB (nginx) to 64 KiB. -> gave_up
    head: int = 64 << 10
    # One line of a head (Suricata: meta-field-limit). -> event request_field_too_long, response_field_too_long
    field: int = 18 << 10
    # How much of a decoded body rules can see (Suricata: request-body-limit, response-body-limit). -> rest skipped
    request_body: int = 100 << 10
    response_body: int = 100 << 10
    # Content codings undone one after the other (libhtp: response-decompression-layer-limit). -> the rest stays coded
    decode_layers: int = 2
    # What an inner layer may produce for one body (libhtp: compression-bomb-limit). -> event compression_bomb, body cut
    decoded_inner: int = 1 << 20
    # LZMA is off as in Suricata: it costs most and browsers do not speak it. Memory of its dictionary when on.
    lzma: bool = False
    lzma_memory: int = 1 << 20
    # A chunk-size line with its extensions; Apache and nginx stop at 8 KiB or below. -> gave_up
    chunk_line: int = 8 << 10
    # Requests without a response yet; browsers do not pipeline, nginx reads one at a time. -> gave_up
    pipelined: int = 256
    # Streams open at once on one HTTP/2 connection; servers announce 100 to 256. -> gave_up
    http2_streams: int = 1024
    # Table for HPACK in each direction, whatever SETTINGS allow; Chrome asks for 64 KiB. -> gave_up when used
    http2_table: int = 64 << 10
    # Bytes of HTTP/2 held back when bodies are held: below the initial flow-control window (RFC 9113, section 6.9.2),
    # or the sender would wait for credit that the receiver has no reason to give. -> let go without the rest
    http2_held: int = 48 << 10
    # Questions and records read from one DNS message; 64 KiB could carry 5,000. -> event too_many_records, rest unread
    dns_records: int = 256
    # Handshake bytes of one side before encryption: a ClientHello with post-quantum shares is 2 KiB, a long certificate
    # chain 20 KiB. -> gave_up
    tls_handshake: int = 128 << 10
    # What rules see of one WebSocket message, compressed or not (Suricata: websocket.max-payload-size). -> event, rest
    # of the message not searched
    websocket_message: int = 64 << 10
    # Long-header packets of one side before its hello is complete; a hello with post-quantum shares needs two or three,
    # a lossy path repeats them. -> event crypto_frag_too_long, gave_up
    quic_packets: int = 64
    # How much of one MQTT packet rules see. -> the rest is not searched
    mqtt_packet: int = 64 << 10
    # Packets of MQTT without their answer; servers grant 20 and more. -> event too_many_transactions, oldest given up
    mqtt_open: int = 1024
    # A message of Kerberos over TCP; a ticket with many groups has some 12 KiB, Windows allows 48. -> gave_up
    krb5_message: int = 64 << 10
    # How much of one LDAP message rules see; Active Directory takes requests of 10 MiB. -> the rest is not searched
    ldap_message: int = 64 << 10
    # Requests of LDAP without their last answer (Suricata: max-tx). -> event too_many_transactions, oldest given up
    ldap_open: int = 256
    # How much of one message of PostgreSQL rules see: a query with many values is larger. -> the rest is not searched
    pgsql_message: int = 64 << 10
    # Queries without their end (Suricata: max-tx). -> event too_many_transactions, oldest given up
    pgsql_open: int = 1024
    # How much of one record of NFS is read; that of a WRITE has up to 1 MiB of data. -> the rest is passed over
    nfs_message: int = 16 << 10
    # Calls of NFS without a reply, and handles whose names are known. -> event too_many_transactions; oldest forgotten
    nfs_open: int = 1024
    # RFC 4253, section 4.2 allows 255 bytes for the version and any number of lines before it. -> gave_up
    ssh_banner: int = 4 << 10
    # RFC 4253, section 6.1: packets of 35,000 bytes must be understood; a KEXINIT is 1 to 2 KiB. -> no HASSH, event
    ssh_packet: int = 35_000

    # How much of one attachment, form part or transferred file rules can see (Suricata: content-limit). -> rest skipped
    file: int = 100 << 10
    # Files of a transaction kept after they were judged, and their bytes. -> the oldest is let go
    file_count: int = 64
    file_total: int = 256 << 10
    # Names of files of one transaction. -> the oldest is let go
    file_names: int = 256
    # Digests of whole files that rules ask for, by buffer; the rule set fills this in.
    hashes: frozenset[str] = frozenset()
    # Frames that rules ask for, by buffer; the rule set fills this in.
    frames: frozenset[str] = frozenset()
    # Whether what HTTP/2 frames say is kept for rules; the rule set fills this in, too.
    http2_frames: bool = False
    # Whether rules on the request line of HTTP/1 are judged before its head is complete, as Suricata does; for captures
    # only, because a pass so early would let the rest of the head go unseen.
    lines_alone: bool = False
    # Protocols that are recognised and not parsed (Suricata: app-layer.protocols.X.enabled, detection-only).
    detection_only: frozenset[str] = frozenset()
    # How long a file may be for that, decoded: what a small one can inflate to at once. -> no digest
    hashed: int = 16 << 20
    # A line of a command, reply or header (Suricata's limit, too). -> event truncated_line, rest of the line skipped
    dialogue_line: int = 4 << 10
    # Header fields of one entity of a mail, together; Postfix stops at 100 KiB. -> event mime_long_header_value
    mail_head: int = 128 << 10
    # Entities within each other whose delimiters are looked for; scanners stop at 10 to 30. -> event mime_parse_failed
    mail_depth: int = 32
    # Addresses found in the text of a mail. -> more are not looked for
    mail_urls: int = 256
    # Recipients of a mail; Postfix takes 1,000. -> gave_up
    mail_recipients: int = 4096
    # Commands of SMTP without a reply yet. -> gave_up
    dialogue_pipelined: int = 1024
    # What a client sends before the reply says whether it is a message or more commands. -> taken for a message
    dialogue_early: int = 64 << 10
    # Replies to one FTP command, together; a long HELP has 4 KiB. -> the rest is not searched
    ftp_reply: int = 32 << 10
    # The data of one DCERPC call that rules can see, each way (Suricata: 1 MiB). -> the rest is not searched
    dcerpc_stub: int = 128 << 10
    # How much of one SMB record is read: more than rules see of a file. -> the rest is passed over
    smb_record: int = 128 << 10
    # Requests without a response, names of open files, trees; servers grant some hundred credits. -> oldest forgotten
    smb_table: int = 4096
    # Files on their way and pipes in use on one connection. -> the oldest is taken for complete
    smb_files: int = 64
    smb_pipes: int = 64


DEFAULT_LIMITS = AppLimits()
