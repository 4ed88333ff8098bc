"""The flows of a running firewall: listed, captured and flushed while packets go on."""
