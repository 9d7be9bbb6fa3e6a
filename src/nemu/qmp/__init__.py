"""The control interface: QEMU's machine protocol, QMP (docs/interop/qmp-spec of QEMU), for its clients.

``server`` accepts clients and sends events; what answers them is imported when the first one comes.

    sockets      where clients come in
    connection   one client: greeting, negotiation, requests in, answers and events out
    jsonstream   a stream of bytes into JSON values, bounded in size and depth
    registry     commands: a function with its arguments and result as types
    schema       those types: checks, encoding, and what query-qmp-schema says
    events       every event, with its rate limit
    descriptors  open files that came with a message
    commands/    what the commands do
    client       the other end, for nemu's own commands

Nothing here knows devices or KVM: handlers call the session and its machine.
"""
