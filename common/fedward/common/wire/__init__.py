"""What travels between hospital and server: bodies, signed messages, sessions. No transport here.

`body` is the content of a large message as a file, `spool` receives one piece by piece, `message`
signs and verifies, `session` counts. `link.proto` is the format; the modules `link_pb2*` are
generated from it.
"""
