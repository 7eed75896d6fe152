"""The public error tree. Each class has a stable `code`; the message says what happened, where, and what to do."""


class QkdnodeError(Exception):
    """Root of everything that qkdnode raises on purpose."""

    code = "ERROR"
    exit_status = 1


class ConfigError(QkdnodeError):
    """The configuration cannot be used; the message names the key."""

    code = "CONFIG"
    exit_status = 78


class AlgorithmDisallowedError(QkdnodeError):
    """The node needs an algorithm that the registry or its configuration disallows today; it does not start."""

    code = "ALGORITHM_DISALLOWED"
    exit_status = 78


class KernelError(QkdnodeError):
    """The kernel demanded by QKDNODE_KERNEL is unknown, not built, or not for this CPU."""

    code = "KERNEL"


class MemoryLockError(QkdnodeError, MemoryError):
    """Key material cannot be locked in memory here: nothing is done with it."""

    code = "MEMORY_LOCK"


class DeviceError(QkdnodeError):
    """Something about a QKD module or QRNG; the message names the serial."""

    code = "DEVICE"


class DeviceNotFoundError(DeviceError):
    """No device with the wanted serial answers on the bus."""

    code = "DEVICE_NOT_FOUND"


class DeviceLostError(DeviceError):
    """The device vanished while in use."""

    code = "DEVICE_LOST"


class DeviceProtocolError(DeviceError):
    """The device sent what the device protocol does not allow."""

    code = "DEVICE_PROTOCOL"


class DeviceUnhealthyError(DeviceError):
    """The device, or a test of its output, reports a failure that is latched until acknowledged."""

    code = "DEVICE_UNHEALTHY"


class NoEntropyError(QkdnodeError):
    """No healthy QRNG feeds the entropy pool; random numbers are refused."""

    code = "NO_ENTROPY"


class EntropyShortError(NoEntropyError):
    """The QRNGs are healthy but slower than the demand: the same draw succeeds a little later."""

    code = "ENTROPY_SHORT"


class ProtocolError(QkdnodeError):
    """A rule of a protocol between nodes was broken."""

    code = "PROTOCOL"


class LocalProtocolError(ProtocolError):
    """This end tried what the protocol does not allow now: a fault of the program."""

    code = "PROTOCOL_LOCAL"


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow now."""

    code = "PROTOCOL_REMOTE"


class AuthenticationError(QkdnodeError):
    """A tag did not verify. Never retried; always a security event."""

    code = "AUTH_FAILED"


class PoolExhaustedError(QkdnodeError):
    """The authentication-key pool cannot serve a tag without touching its reserve."""

    code = "AUTH_STARVED"


class ChannelError(QkdnodeError):
    """The classical channel to the neighbour cannot be used."""

    code = "CHANNEL"


class VaultError(QkdnodeError):
    """The vault refused or failed."""

    code = "VAULT"


class VaultLockedError(VaultError):
    """The root key does not open this vault."""

    code = "VAULT_LOCKED"


class VaultDamagedError(VaultError):
    """A stored record fails its authentication; it is named and not used."""

    code = "VAULT_DAMAGED"


class DiskFullError(VaultError):
    """The vault's file system is full; nothing was changed."""

    code = "DISK_FULL"


class VaultUnansweredError(VaultError):
    """The vault has not answered in time: its disk hangs. What it says of the request is in the message."""

    code = "VAULT_UNANSWERED"


class VaultEntropyError(VaultError, NoEntropyError):
    """The vault cannot seal for want of random numbers; nothing was changed."""

    code = "NO_ENTROPY"


class OutOfStockError(VaultError):
    """Not enough stock of the association's link to allocate."""

    code = "OUT_OF_STOCK"


class PolicyDeniedError(VaultError):
    """The policy refuses; `rule` names the rule, and the message says why."""

    code = "POLICY_DENIED"

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"{reason} [rule {rule}]")
        self.rule = rule


class PolicyError(QkdnodeError):
    """A policy document, or a change of policy, cannot be; the message names the place."""

    code = "POLICY"


class ApprovalError(QkdnodeError):
    """Approvals do not count; `refusal` names why."""

    code = "APPROVAL"

    def __init__(self, refusal: str, reason: str) -> None:
        super().__init__(f"{reason} [{refusal}]")
        self.refusal = refusal


class SupplyError(QkdnodeError):
    """The supply of keys to an application failed."""

    code = "SUPPLY"


class ControlError(QkdnodeError):
    """The control socket of an agent cannot be used, or the agent could not do what was asked there."""

    code = "CONTROL"


class NoAgentError(ControlError):
    """No agent listens at the control socket."""

    code = "NO_AGENT"
    exit_status = 69


class AccessDeniedError(QkdnodeError):
    """The access rules refuse; the message names the rule."""

    code = "ACCESS_DENIED"
    exit_status = 77


class AuditError(QkdnodeError):
    """The audit log is not what it claims to be, or cannot be read."""

    code = "AUDIT"


class AuditUnreadableError(AuditError):
    """The file is not an audit export."""

    code = "AUDIT_UNREADABLE"
    exit_status = 2
