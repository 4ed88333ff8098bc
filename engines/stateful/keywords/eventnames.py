"""Names of events that rules may ask for: what Suricata knows, and what the parsers here report besides.

Sources: Suricata's event tables and its rule files of events, of versions 6 to 8 together, since rules are written for
any of them. A protocol or decoder that is not in its table takes any name: nothing is known of its events.
"""

from __future__ import annotations


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """Lines of ``name: event event ...``; a line that is indented goes on with the one before."""
    found: dict[str, list[str]] = {}
    events: list[str] = []
    for line in text.strip().splitlines():
        head, colon, rest = line.partition(":")
        if colon:
            events = found[head.strip()] = []
        events += (rest if colon else line).split()
    return {name: tuple(words) for name, words in found.items()}


STREAM_EVENTS = _table("""
stream:
    3whs_ack_in_wrong_dir 3whs_async_wrong_seq 3whs_right_seq_wrong_ack_evasion 3whs_synack_in_wrong_direction
    3whs_synack_resend_with_diff_ack 3whs_synack_resend_with_different_ack 3whs_synack_resend_with_diff_seq
    3whs_synack_toserver_on_syn_recv 3whs_synack_with_wrong_ack 3whs_synack_flood 3whs_syn_flood
    3whs_syn_resend_diff_seq_on_syn_recv 3whs_syn_toclient_on_syn_recv 3whs_wrong_seq_wrong_ack
    3whs_ack_data_inject 4whs_synack_with_wrong_ack 4whs_synack_with_wrong_syn 4whs_wrong_seq 4whs_invalid_ack
    closewait_ack_out_of_window closewait_fin_out_of_window closewait_pkt_before_last_ack closewait_invalid_ack
    closing_ack_wrong_seq closing_invalid_ack est_packet_out_of_window est_pkt_before_last_ack est_synack_resend
    est_synack_resend_with_diff_ack est_synack_resend_with_different_ack est_synack_resend_with_diff_seq
    est_synack_toserver est_syn_resend est_syn_resend_diff_seq est_syn_toclient est_invalid_ack fin_invalid_ack
    fin1_ack_wrong_seq fin1_fin_wrong_seq fin1_invalid_ack fin2_ack_wrong_seq fin2_fin_wrong_seq fin2_invalid_ack
    fin_but_no_session fin_out_of_window fin_syn lastack_ack_wrong_seq lastack_invalid_ack rst_but_no_session
    rst_invalid_ack rst_with_data timewait_ack_wrong_seq timewait_invalid_ack shutdown_syn_resend
    pkt_invalid_timestamp pkt_invalid_ack pkt_broken_ack pkt_retransmission pkt_spurious_retransmission
    pkt_bad_window_update suspected_rst_inject wrong_thread reassembly_segment_before_base_seq
    reassembly_no_segment reassembly_seq_gap reassembly_overlap_different_data reassembly_depth_reached
    reassembly_insert_memcap reassembly_insert_limit reassembly_insert_invalid reassembly_urgent_oob_limit_reached
    urgent_oob_limit_reached
""")["stream"]
"""``stream-event``."""

WITHOUT_DECODER = ("too_many_layers",)
"""``decode-event`` without a decoder's name before it."""

DECODE_EVENTS = _table("""
ipv4: pkt_too_small hlen_too_small iplen_smaller_than_hlen trunc_pkt opt_invalid opt_invalid_len opt_malformed
    opt_pad_required opt_eol_required opt_duplicate opt_unknown wrong_ip_version icmpv6 unknown_protocol
    frag_pkt_too_large frag_overlap frag_ignored frag_too_large
icmpv4: pkt_too_small unknown_type unknown_code ipv4_trunc_pkt ipv4_unknown_ver
icmpv6: unknown_type unknown_code pkt_too_small ipv6_unknown_version ipv6_trunc_pkt mld_message_with_invalid_hl
    unassigned_type experimentation_type
ipv6: pkt_too_small trunc_pkt trunc_exthdr exthdr_dupl_fh exthdr_useless_fh exthdr_dupl_rh exthdr_dupl_hh
    exthdr_dupl_dh exthdr_dupl_ah exthdr_dupl_eh exthdr_invalid_optlen wrong_ip_version exthdr_ah_res_not_null
    hopopts_unknown_opt hopopts_only_padding dstopts_unknown_opt dstopts_only_padding rh_type_0 zero_len_padn
    fh_non_zero_reserved_field data_after_none_header unknown_next_header icmpv4 frag_pkt_too_large frag_overlap
    frag_ignored frag_invalid_length ipv4_in_ipv6_too_small ipv4_in_ipv6_wrong_version ipv6_in_ipv6_too_small
    ipv6_in_ipv6_wrong_version
tcp: pkt_too_small hlen_too_small invalid_optlen opt_invalid_len opt_duplicate
udp: pkt_too_small hlen_too_small hlen_invalid len_invalid pkt_too_large
sll: pkt_too_small
ethernet: pkt_too_small unknown_type
ppp: pkt_too_small vju_pkt_too_small ip4_pkt_too_small ip6_pkt_too_small wrong_type unsup_proto
pppoe: pkt_too_small wrong_code malformed_tags
gre: pkt_too_small wrong_version version0_recur version0_flags version0_hdr_too_big version0_malformed_sre_hdr
    version1_chksum version1_route version1_ssr version1_recur version1_flags version1_no_key version1_wrong_protocol
    version1_malformed_sre_hdr version1_hdr_too_big
vlan: header_too_small unknown_type too_many_layers
ieee8021ah: header_too_small
vntag: header_too_small unknown_type
ipraw: invalid_ip_version
ltnull: pkt_too_small unsupported_type
sctp: pkt_too_small
esp: pkt_too_small
mpls: header_too_small pkt_too_small bad_label_router_alert bad_label_implicit_null bad_label_reserved
    unknown_payload_type
vxlan: unknown_payload_type
geneve: unknown_payload_type
erspan: header_too_small unsupported_version too_many_vlan_layers
dce: pkt_too_small
chdlc: pkt_too_small
nsh: header_too_small unsupported_version bad_header_length reserved_type unsupported_type unknown_payload
arp: pkt_too_small unsupported_hardware unsupported_protocol unsupported_pkt invalid_pkt invalid_hardware_size
    invalid_protocol_size unsupported_opcode
""")
"""``decode-event``, by decoder."""

DETECTION_EVENTS = _table("""
detection:
    applayer_mismatch_protocol_both_directions applayer_wrong_direction_first_data
    applayer_detect_protocol_only_one_direction applayer_proto_detection_skipped applayer_no_tls_after_starttls
    applayer_unexpected_protocol
""")["detection"]
"""``app-layer-event`` of protocol detection itself."""

APP_EVENTS = _table("""
dns: malformed_data not_request not_response not_a_request not_a_response unsolicited_response flooded
    state_memcap_reached z_flag_set invalid_opcode name_too_long infinite_loop too_many_labels invalid_additionals
    invalid_authorities too_many_records
ftp: request_command_too_long response_command_too_long too_many_transactions
http: unknown_error gzip_decompression_failed request_field_missing_colon response_field_missing_colon
    invalid_request_chunk_len invalid_response_chunk_len invalid_transfer_encoding_value_in_request
    invalid_transfer_encoding_value_in_response invalid_content_length_field_in_request
    invalid_content_length_field_in_response duplicate_content_length_field_in_request
    duplicate_content_length_field_in_response 100_continue_already_seen unable_to_match_response_to_request
    invalid_server_port_in_request invalid_authority_port request_header_invalid response_header_invalid
    missing_host_header host_header_ambiguous invalid_request_field_folding invalid_response_field_folding
    request_field_too_long response_field_too_long file_name_too_long request_line_invalid request_body_unexpected
    response_body_unexpected request_server_port_tcp_port_mismatch request_uri_host_invalid
    request_header_host_invalid request_auth_unrecognized request_header_repetition response_header_repetition
    double_encoded_uri uri_delim_non_compliant method_delim_non_compliant request_line_leading_whitespace
    too_many_encoding_layers abnormal_ce_header response_multipart_byteranges response_abnormal_transfer_encoding
    response_chunked_old_proto response_invalid_protocol response_invalid_status request_line_incomplete
    request_line_missing_protocol lzma_memlimit_reached compression_bomb range_invalid request_chunk_extension
    response_chunk_extension request_too_many_headers response_too_many_headers multipart_generic_error
    multipart_no_filedata multipart_invalid_header too_many_warnings failed_protocol_change incomplete_body
    request_smuggling response_smuggling response_bare_cr response_without_head unexpected_switching_protocols
    too_many_frames
http2: invalid_frame_header invalid_client_magic invalid_frame_data invalid_header invalid_frame_length
    extra_header_data long_frame_data stream_id_reuse invalid_http1_settings failed_decompression invalid_range
    header_integer_overflow too_many_streams authority_host_mismatch userinfo_in_uri reassembly_limit_reached
    dns_request_too_long dns_response_too_long data_stream_zero too_many_frames unable_to_match_response_to_request
    invalid_hpack compression_bomb
krb5: malformed_data weak_encryption
mqtt: missing_connect missing_publish missing_subscribe missing_unsubscribe double_connect unintroduced_message
    invalid_qos_level missing_msg_id unassigned_msg_type too_many_transactions malformed_traffic
ntp: unsolicited_response malformed_data not_request not_response
quic: failed_decrypt error_on_data error_on_header crypto_frag_too_long
rfb: unimplemented_security_type unknown_security_result unknown_security_type malformed_message confused_state
sip: incomplete_data invalid_data
smb: internal_error malformed_data record_overflow malformed_ntlmssp_request malformed_ntlmssp_response
    duplicate_negotiate negotiate_malformed_dialects file_overlap request_to_client response_to_server
    negotiate_max_read_size_too_large negotiate_max_write_size_too_large read_request_too_large
    read_response_too_large read_queue_size_exceeded read_queue_cnt_exceeded write_request_too_large
    write_queue_size_exceeded write_queue_cnt_exceeded unusual_ntlmssp_order netbios_session_error
    too_many_transactions
smtp: invalid_reply unable_to_match_reply_with_request max_command_line_len_exceeded max_reply_line_len_exceeded
    invalid_pipelined_sequence bdat_chunk_len_exceeded no_server_welcome_message tls_rejected data_command_rejected
    failed_protocol_change mime_parse_failed mime_malformed_msg mime_invalid_base64 mime_invalid_qp mime_long_line
    mime_long_enc_line mime_long_header_name mime_long_header_value mime_long_boundary mime_long_filename
    duplicate_fields unparsable_content truncated_line max_line_len_exceeded
ssh: invalid_banner long_banner invalid_record long_kex_record
tls: invalid_sslv2_header invalid_tls_header invalid_record_version invalid_record_type invalid_record_length
    invalid_handshake_message heartbeat_message invalid_heartbeat_message overflow_heartbeat_message
    dataleak_heartbeat_mismatch handshake_invalid_length multiple_sni_extensions invalid_sni_type invalid_sni_length
    too_many_records_in_packet invalid_alert_message invalid_certificate certificate_missing_element
    certificate_unknown_element certificate_invalid_length certificate_invalid_string certificate_invalid_version
    certificate_invalid_serial certificate_invalid_algorithmidentifier certificate_invalid_x509name
    certificate_invalid_date certificate_invalid_extensions certificate_invalid_der certificate_invalid_subject
    certificate_invalid_issuer certificate_invalid_validity error_message_encountered
    too_many_subject_alternative_names invalid_ssl_record handshake_message_too_long
websocket: skip_end_of_payload reassembly_limit_reached decompress_failed
""")
"""``app-layer-event``, by protocol."""
