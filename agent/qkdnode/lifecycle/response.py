"""What a person does after a compromise, by what was compromised: printed with the answer, as in docs/lifecycle.md."""

STOP_USE = "tell the owners of the applications: what these keys protect is to be held as known, from the first use on"
WATCH = "`qkdnode compromise` until no row moves and the neighbour has confirmed; then export the audit log as evidence"
ANEW = (
    "once it has confirmed, `qkdnode provision pair` and a courier: the pads of these Batches may be known too, and "
    "nothing is told over the old pair afterwards"
)
STEPS: dict[str, tuple[str, ...]] = {
    "key": (STOP_USE, WATCH),
    "link": (
        "`qkdnode pause LINK`: key of sessions from the next one on is not reached",
        STOP_USE,
        "find the cause at fibre, modules and classical channel",
        WATCH,
        ANEW,
        "`qkdnode resume LINK`",
    ),
    "peer": (
        "`qkdnode pause` each link to the neighbour, and cut it off the network if it is in others' hands",
        STOP_USE,
        "have the neighbour rebuilt by its operator, with a new identity",
        WATCH,
        ANEW,
        "`qkdnode resume` each link",
    ),
    "device": (
        "`qkdnode pause` the links that the device serves; take it off the bus and keep it for examination",
        STOP_USE,
        WATCH,
        "put another device in its place, and name its serial in the configuration",
        "`qkdnode resume` each link",
    ),
    "application": (
        "take the application out of the configuration of its node and `qkdnode reload`: its subscriptions end",
        STOP_USE,
        WATCH,
        "provision it anew, under another name, once its machine can be trusted",
    ),
    "time-window": (STOP_USE, "compromise what else was open to the intruder then: devices, peer, applications", WATCH),
}
