"""What becomes of a proven request: decided by the rules, journalled, done, answered.

What changes something is journalled by itself before it is done, and is not done if that fails. What only reads is
journalled at its first time in five minutes for each operator and action, and then counted: the next leaf tells how
often it came. So a display that asks every second leaves a leaf in five minutes, and none of its requests is missing in
the sum. While the vault cannot journal, reads of state are answered and counted until it can: who must mend a full disk
has to see it. A stop is done then too, told of in the agent's own log, and counted likewise.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import msgspec

from qkdnode.access.confidential import CONFIDENTIAL_ALARMS, may_know
from qkdnode.access.identities import fingerprint
from qkdnode.access.pace import Pace
from qkdnode.access.rules import READS, STOPS, Action, decide
from qkdnode.access.tally import Tally
from qkdnode.control import couriers, rotations
from qkdnode.control.conversation import Asked, Operator, Unknown
from qkdnode.control.port import NodePort
from qkdnode.control.receipts import destruction_receipt
from qkdnode.errors import AccessDeniedError, ControlError, QkdnodeError, RemoteProtocolError, VaultError
from qkdnode.ids import Association
from qkdnode.lifecycle.policy.decision import document_digest
from qkdnode.vault import decoys, epochs, extract, inventory, lineage, retirement, revocations, scopes, scrub
from qkdnode.vault.couriers import file_digest
from qkdnode.vault.proofs import ProveEntry
from qkdnode.vault.provenance import ShowProvenance
from qkdnode.vault.receipts import Destruction
from qkdnode.vault.requests import ExplainPolicy, Explanation, PolicyVersion, ShowPolicy
from qkdnode.wire import control as wire
from qkdnode.wire.control import Answer, Done, Refused, Request
from qkdnode.wire.courier import decode_file

PERIOD_S = 300.0
ACTS_BURST, ACTS_PER_S = 20, 2.0  # of one operator; who goes faster waits
STOP_WAITS_S = 5.0  # for its leaf, when the disk does not answer at all
MAX_TEXT = 1000

Details = dict[str, str | int | float | bool | None]
Record = Callable[[str, str, Details], Awaitable[None]]  # subject, outcome, details; raises if it is not journalled
Topic = tuple[str, ...]

ACTIONS: dict[type[Request], Action] = {
    wire.Status: Action.STATUS_READ,
    wire.Links: Action.LINKS_READ,
    wire.Devices: Action.DEVICES_READ,
    wire.Alarms: Action.ALARMS_READ,
    wire.Acknowledge: Action.ALARMS_ACKNOWLEDGE,
    wire.ListKeys: Action.KEYS_READ,
    wire.ShowKey: Action.KEYS_READ,
    wire.ShowLineage: Action.KEYS_READ,
    wire.RevokeKeys: Action.KEYS_REVOKE,
    wire.CompromiseScope: Action.KEYS_REVOKE,
    wire.Scopes: Action.KEYS_READ,
    wire.RotateKeys: Action.KEYS_ROTATE,
    wire.GiveUpRotations: Action.KEYS_ROTATE,
    wire.Rotations: Action.KEYS_READ,
    wire.CarryOut: Action.KEYS_ROTATE,
    wire.CarryIn: Action.KEYS_ROTATE,
    wire.RotationShapes: Action.KEYS_REHEARSE,
    wire.Scrubbing: Action.STATUS_READ,
    wire.ScrubNow: Action.KEYS_KEEP,
    wire.Epochs: Action.STATUS_READ,
    wire.RewrapKeys: Action.KEYS_KEEP,
    wire.DestructionReceipt: Action.KEYS_READ,
    wire.ShowProvenance: Action.KEYS_READ,
    wire.Decoys: Action.DECOYS_READ,
    wire.RenewDecoys: Action.DECOYS_RENEW,
    wire.Pause: Action.LINK_PAUSE,
    wire.Resume: Action.LINK_RESUME,
    wire.Shutdown: Action.NODE_SHUTDOWN,
    wire.Reload: Action.CONFIG_RELOAD,
    wire.ExportBegin: Action.AUDIT_EXPORT,
    wire.ExportPage: Action.AUDIT_EXPORT,
    wire.ProveEntry: Action.AUDIT_EXPORT,
    wire.PolicyShow: Action.POLICY_READ,
    wire.PolicyExplain: Action.POLICY_READ,
    wire.PolicyApply: Action.POLICY_APPLY,
    wire.Assets: Action.INVENTORY_READ,
    wire.Algorithms: Action.INVENTORY_READ,
    wire.Comparisons: Action.INVENTORY_READ,
    wire.Reconcile: Action.INVENTORY_RECONCILE,
    wire.ClockShow: Action.STATUS_READ,
    wire.ClockConfirm: Action.CLOCK_CONFIRM,
    wire.Due: Action.KEYS_READ,
}


class Desk:
    """Serves every connection of one node. `ask` is the vault, `clock_s` any clock that does not step."""

    def __init__(
        self,
        port: NodePort,
        *,
        ask: Callable[[Any], Awaitable[Any]],
        record: Record,
        clock_s: Callable[[], float],
        log: Any,
        period_s: float = PERIOD_S,
    ) -> None:
        self._port, self._ask, self._record = port, ask, record
        self._clock_s, self._log = clock_s, log
        self._tally = Tally(period_s)
        self._paces: dict[str, Pace] = {}
        self._who: dict[str, Details] = {}  # of each operator, as they asked last

    async def serve(self, asked: Asked, uid: int) -> Done | Refused:
        """Decide, journal, do."""
        request, operator = asked.request, asked.operator
        action = ACTIONS[type(request)]
        decision = decide(operator.roles, action)
        who = self._who[f"operator/{operator.name}"] = _who(operator, uid)
        details: Details = {"action": action.value, "rule": decision.rule, "uid": uid, **who}
        if not decision.allowed:
            await self._tell((f"operator/{operator.name}", "refused", action.value, decision.rule), details)
            return Refused(asked.counter, AccessDeniedError.code, decision.rule, decision.reason)
        details |= _particulars(request)
        topic = (f"operator/{operator.name}", "allowed", action.value, decision.rule)
        unjournalled = ""
        try:
            if action in READS:
                await self._tell(topic, details)
            else:
                await self._await_turn(operator)
                if action in STOPS:
                    unjournalled = await self._journal_a_stop(topic, details)
                else:
                    await self._journal(topic[0], "allowed", details)
            try:
                answer = await HANDLERS[type(request)](self, request, operator)
            finally:
                await self._look_for_decoys(request, operator)
            if unjournalled and isinstance(answer, wire.Acted):
                answer = msgspec.structs.replace(answer, detail=f"{answer.detail}; {unjournalled}"[:MAX_TEXT])
        except QkdnodeError as error:
            if action not in READS:
                failed = {**details, "code": error.code}
                await self._tell((f"operator/{operator.name}", "failed", action.value, decision.rule), failed)
            return Refused(asked.counter, error.code, decision.rule, str(error)[:MAX_TEXT])
        except Exception as error:
            # The agent goes on: its keys and links do not depend on what an operator asked.
            self._log.error("control request failed", action=action.value, reason=repr(error))
            failed = {**details, "code": QkdnodeError.code}
            await self._tell((f"operator/{operator.name}", "failed", action.value, decision.rule), failed)
            reason = f"a fault of the program ({type(error).__name__}): its log has more; report it"
            return Refused(asked.counter, QkdnodeError.code, decision.rule, reason)
        return Done(asked.counter, decision.rule, wire.encode_answer(answer))

    async def unknown(self, asked: Unknown, uid: int) -> Refused:
        """A signed request that cannot be read."""
        details: Details = {"action": "unknown", "uid": uid, **_who(asked.operator, uid)}
        await self._tell((f"operator/{asked.operator.name}", "refused", "unknown", ""), details)
        return Refused(asked.counter, RemoteProtocolError.code, "", asked.reason[:MAX_TEXT])

    async def turned_away(self, uid: int, code: str, reason: str) -> None:
        """A connection that ends without its caller having proven anything."""
        details: Details = {"action": "connect", "code": code, "uid": uid, "source": f"uid {uid}"}
        if await self._tell((f"user/{uid}", "refused", "connect", code), details):
            self._log.warning("control connection refused", uid=uid, code=code, reason=reason)

    async def tell_due(self, *, everything: bool = False) -> None:
        """Journal what was counted and is due."""
        for topic, requests in self._tally.due(self._clock_s(), everything=everything):
            subject, outcome, action, rule = topic
            details: Details = {"action": action, "rule": rule, "requests": requests, **self._who.get(subject, {})}
            try:
                await self._record(subject, outcome, details)
            except QkdnodeError:
                self._tally.give_back(topic, requests, self._clock_s())

    async def _tell(self, topic: Topic, details: Details) -> bool:
        """Count, and journal the first; whether it was the first."""
        if not self._tally.take(topic, self._clock_s()):
            return False
        try:
            await self._record(topic[0], topic[1], details)
        except QkdnodeError:
            self._tally.untold(topic)
        return True

    async def _journal(self, subject: str, outcome: str, details: Details) -> None:
        try:
            await self._record(subject, outcome, details)
        except QkdnodeError as error:
            raise VaultError(f"it could not be journalled, so it was not done: {error}") from None

    async def _journal_a_stop(self, topic: Topic, details: Details) -> str:
        """Journal, or else count, and say so in the agent's log; what the operator is told of it."""
        try:
            async with asyncio.timeout(STOP_WAITS_S):
                await self._record(topic[0], topic[1], details)
        except (QkdnodeError, TimeoutError) as error:
            reason = str(error) or f"the vault has not answered within {STOP_WAITS_S:g} s"
            if self._tally.take(topic, self._clock_s()):
                self._tally.untold(topic)
            self._log.error("a stop could not be journalled", by=topic[0], **details, reason=reason)
            return f"it could not be journalled ({reason}): keep the agent's log, which tells of it"
        return ""

    async def _await_turn(self, operator: Operator) -> None:
        pace = self._paces.setdefault(operator.name, Pace(burst=ACTS_BURST, per_s=ACTS_PER_S))
        wait_s = pace.step(self._clock_s())
        if wait_s:
            await asyncio.sleep(wait_s)

    async def _look_for_decoys(self, request: Request, operator: Operator) -> None:
        """Who names a decoy is answered as for a key, and who answers for the keys is told of it."""
        ids = _ids_of(request)
        if not ids:
            return
        with suppress(QkdnodeError):
            suspects: decoys.Suspects = await self._ask(decoys.WhichDecoys(key_ids=ids))
            if suspects.names:
                how = ACTIONS[type(request)]
                told = f"{how} of {len(suspects.names)}, such as {suspects.names[0]}; roles {', '.join(operator.roles)}"
                self._port.decoy(f"operator/{operator.name}", told)

    async def _decoys(self, _: wire.Decoys, __: Operator) -> Answer:
        return _decoy_list(await self._ask(decoys.Decoys()))

    async def _renew_decoys(self, _: wire.RenewDecoys, operator: Operator) -> Answer:
        ended: int = await self._ask(decoys.EndDecoys(by=operator.name))
        self._port.revoked(())
        return wire.Acted(changed=ended > 0, detail=f"{ended} decoys are ended; new ones are made as stock allows")

    # --- what each request does ------------------------------------------------------------------------------------

    async def _status(self, _: wire.Status, __: Operator) -> Answer:
        return await self._port.status()

    async def _links(self, _: wire.Links, __: Operator) -> Answer:
        return wire.LinkList(links=await self._port.links())

    async def _devices(self, _: wire.Devices, __: Operator) -> Answer:
        return wire.DeviceList(devices=await self._port.devices())

    async def _alarms(self, request: wire.Alarms, operator: Operator) -> Answer:
        alarms = await self._port.alarms(may_know(operator.roles))
        until = request.after + request.limit
        return wire.AlarmPage(alarms=alarms[request.after : until], next=until if until < len(alarms) else None)

    async def _acknowledge(self, request: wire.Acknowledge, operator: Operator) -> Answer:
        if request.code in CONFIDENTIAL_ALARMS and not may_know(operator.roles):
            raise ControlError(f"there is no alarm {request.code} of {request.subject!r}: see `qkdnode alarms`")
        changed = await self._port.acknowledge(request.code, request.subject, operator.name)
        about = f"{request.code} of {request.subject}"
        return wire.Acted(changed=changed, detail=f"{about} is acknowledged" if changed else f"{about} was so already")

    async def _list_keys(self, request: wire.ListKeys, _: Operator) -> Answer:
        listed: inventory.ListedKeys = await self._ask(
            inventory.ListKeys(
                after=request.after,
                limit=request.limit,
                local=request.local,
                remote=request.remote,
                link=request.link,
                state=request.state,
                service=request.service,
            )
        )
        return wire.KeyPage(keys=tuple(map(_entry, listed.keys)), next=listed.next)

    async def _show_key(self, request: wire.ShowKey, _: Operator) -> Answer:
        return _entry(await self._ask(inventory.ShowKey(key_id=UUID(bytes=request.key_id))))

    async def _show_lineage(self, request: wire.ShowLineage, _: Operator) -> Answer:
        shown: lineage.Lineage = await self._ask(lineage.ShowLineage(key_id=UUID(bytes=request.key_id)))
        batch, software = shown.batch, shown.batch.details.get("software")
        return wire.KeyLineage(
            key=_entry(shown.key),
            devices=batch.devices,
            session=f"{batch.batch.session:016x}",
            method=batch.method,
            booking=batch.booking,
            family=batch.family,
            qber_z=batch.qber_z,
            eps_sec=batch.eps_sec,
            eps_cor=batch.eps_cor,
            disclosed_bits=batch.disclosed_bits,
            software=None if software is None else str(software),
            batch_state=shown.batch_state,
            made_ns=shown.made_ns,
            settled_ns=shown.settled_ns,
            services=shown.services[0],
            remote_services=shown.services[1],
            scope=shown.scope,
            steps=tuple(wire.LineageStep(**msgspec.structs.asdict(step)) for step in shown.steps),
        )

    async def _revoke(self, request: wire.RevokeKeys, operator: Operator) -> Answer:
        ids = tuple(UUID(bytes=key_id) for key_id in request.key_ids)
        done: revocations.Revoked = await self._ask(
            revocations.RevokeKeys(key_ids=ids, reason=request.reason, by=operator.name)
        )
        self._port.revoked(())
        revoked, already, unknown = (tuple(map(str, some)) for some in (done.revoked, done.already, done.unknown))
        return wire.RevokedKeys(revoked=revoked, already=already, unknown=unknown)

    async def _compromise(self, request: wire.CompromiseScope, operator: Operator) -> Answer:
        made: tuple[scopes.ScopeState, ...] = await self._ask(
            scopes.Compromise(
                kind=request.scope,
                value=request.value or "",
                reason=request.reason,
                by=operator.name,
                from_ns=request.from_ns,
                until_ns=request.until_ns,
            )
        )
        self._port.revoked(tuple(dict.fromkeys(scope.link for scope in made)))
        return wire.ScopeList(scopes=tuple(map(_scope, made)))

    async def _scopes(self, _: wire.Scopes, __: Operator) -> Answer:
        return wire.ScopeList(scopes=tuple(map(_scope, await self._ask(scopes.Scopes()))))

    async def _rotate(self, request: wire.RotateKeys, operator: Operator) -> Answer:
        answer = await rotations.begin(self._ask, request, operator.name)
        self._port.rotated()
        return answer

    async def _give_up(self, request: wire.GiveUpRotations, _: Operator) -> Answer:
        answer = await rotations.give_up(self._ask, request)
        self._port.rotated()
        return answer

    async def _rotations(self, request: wire.Rotations, _: Operator) -> Answer:
        return await rotations.listed(self._ask, request)

    async def _carry_out(self, request: wire.CarryOut, operator: Operator) -> Answer:
        self._port.demand_cut(request.link)
        answer = await couriers.carry_out(self._ask, request, operator.name)
        self._port.rotated()
        return answer

    async def _carry_in(self, request: wire.CarryIn, operator: Operator) -> Answer:
        with suppress(RemoteProtocolError):  # the vault says so, and journals it
            self._port.demand_cut(decode_file(request.file).heading.link)
        answer = await couriers.carry_in(self._ask, request, self._port.people(), operator.name)
        self._port.rotated()
        return answer

    async def _shapes(self, request: wire.RotationShapes, _: Operator) -> Answer:
        return await rotations.shapes(self._ask, self._port.supplied, request)

    async def _scrubbing(self, _: wire.Scrubbing, __: Operator) -> Answer:
        return _scrub(await self._ask(scrub.ScrubProgress()))

    async def _scrub_now(self, _: wire.ScrubNow, __: Operator) -> Answer:
        return _scrub(await self._ask(scrub.Scrub(now=True)))

    async def _epochs(self, _: wire.Epochs, __: Operator) -> Answer:
        return _epoch_list(await self._ask(epochs.Epochs()))

    async def _rewrap(self, request: wire.RewrapKeys, operator: Operator) -> Answer:
        await self._ask(epochs.RewrapKeys(to=request.to, by=operator.name))
        return _epoch_list(await self._ask(epochs.Epochs()))

    async def _receipt(self, request: wire.DestructionReceipt, _: Operator) -> Answer:
        key_id = UUID(bytes=request.key_id)
        return wire.Receipt(receipt=destruction_receipt(key_id, await self._ask(Destruction(key_id=key_id))))

    async def _provenance(self, request: wire.ShowProvenance, _: Operator) -> Answer:
        key_id = None if request.key_id is None else UUID(bytes=request.key_id)
        asked = ShowProvenance(batch=request.batch, link=request.link, key_id=key_id)
        return wire.Receipt(receipt=await self._ask(asked))

    async def _prove(self, request: wire.ProveEntry, _: Operator) -> Answer:
        return wire.Receipt(receipt=await self._ask(ProveEntry(position=request.position)))

    async def _pause(self, request: wire.Pause, operator: Operator) -> Answer:
        changed = await self._port.pause(request.link, operator.name)
        return wire.Acted(changed=changed, detail=f"link {request.link} {'is' if changed else 'was already'} paused")

    async def _resume(self, request: wire.Resume, operator: Operator) -> Answer:
        changed = await self._port.resume(request.link, operator.name)
        detail = f"link {request.link} distils again" if changed else f"link {request.link} was not paused here"
        return wire.Acted(changed=changed, detail=detail)

    async def _shutdown(self, _: wire.Shutdown, operator: Operator) -> Answer:
        changed = await self._port.shutdown(operator.name)
        return wire.Acted(changed=changed, detail="the agent stops" if changed else "the agent was stopping already")

    async def _reload(self, _: wire.Reload, operator: Operator) -> Answer:
        return await self._port.reload(operator.name)

    async def _export_begin(self, _: wire.ExportBegin, __: Operator) -> Answer:
        head: extract.SignedHead = await self._ask(extract.LogHead())
        return wire.LogHead(origin=head.origin, public_key=head.public_key, size=head.size, note=head.note)

    async def _export_page(self, request: wire.ExportPage, _: Operator) -> Answer:
        page: extract.LoggedPage = await self._ask(
            extract.LogPage(position=request.position, size=request.size, max_bytes=wire.LOG_PAGE_BYTES)
        )
        return wire.LogPage(position=request.position, leaves=page.leaves, checkpoints=page.checkpoints)

    async def _policy_show(self, request: wire.PolicyShow, _: Operator) -> Answer:
        return self._shown(await self._ask(ShowPolicy(number=request.number)))

    async def _policy_explain(self, request: wire.PolicyExplain, _: Operator) -> Answer:
        explained: Explanation = await self._ask(
            ExplainPolicy(
                association=Association(request.application, request.remote, request.link),
                size_bits=request.size_bits,
                key_class=request.key_class,
            )
        )
        decision = explained.decision
        return wire.PolicyExplained(
            policy=explained.policy,
            allowed=decision.allowed,
            rule=decision.rule,
            reason=decision.reason,
            key_class=None if decision.terms is None else decision.terms.name,
            terms=None if decision.terms is None else msgspec.to_builtins(decision.terms),
            clearance=explained.clearance,
            quotas=None if explained.quotas is None else msgspec.to_builtins(explained.quotas),
            configured=explained.configured,
        )

    async def _policy_apply(self, request: wire.PolicyApply, operator: Operator) -> Answer:
        return self._shown(await self._port.apply_policy(request, operator.name))

    def _shown(self, version: PolicyVersion) -> wire.PolicyShown:
        policy = version.policy
        return wire.PolicyShown(
            node=version.node,
            number=policy.number,
            in_force=policy.number == version.newest,
            digest=policy.digest.hex(),
            previous=version.previous.hex(),
            document_digest=document_digest(policy.text).hex(),
            document=policy.text.decode(),
            repeats=version.repeats,
            applied_ns=version.applied_ns,
            applied_by=version.applied_by,
            approvals=tuple(
                wire.PolicyApproval(operator=one.approval.operator, role=one.role, expires_ns=one.approval.expires_ns)
                for one in version.approvals
            ),
            newest=version.newest,
            newest_digest=version.newest_digest.hex(),
            withheld=version.withheld,
        )

    async def _assets(self, request: wire.Assets, _: Operator) -> Answer:
        found, unused = await self._port.assets()
        chosen = [asset for asset in found if request.kind in (None, asset.kind)]
        page = _fitting(chosen[request.after : request.after + request.limit])
        until = request.after + len(page)
        following = until if until < len(chosen) else None
        return wire.AssetPage(assets=page, next=following, without_asset=unused)

    async def _algorithms(self, _: wire.Algorithms, __: Operator) -> Answer:
        return await self._port.algorithms()

    async def _comparisons(self, request: wire.Comparisons, _: Operator) -> Answer:
        return wire.ComparisonList(comparisons=await self._port.compared(request.link))

    async def _reconcile(self, request: wire.Reconcile, _: Operator) -> Answer:
        before = await self._port.compared(request.link)
        await self._port.compare(request.link)
        return wire.ComparisonList(comparisons=before)

    async def _clock(self, _: wire.ClockShow, __: Operator) -> Answer:
        return self._port.clock()

    async def _confirm_clock(self, request: wire.ClockConfirm, _: Operator) -> Answer:
        return self._port.confirm_clock(request.until_ns)

    async def _due(self, _: wire.Due, __: Operator) -> Answer:
        found: retirement.DueTimers = await self._ask(retirement.ShowDue())
        timers = tuple(wire.DueEntry(**msgspec.structs.asdict(timer)) for timer in found.timers)
        return wire.DueList(trusted_ns=found.trusted_ns, timers=timers)


HANDLERS: dict[type[Request], Callable[[Desk, Any, Operator], Awaitable[Answer]]] = {
    wire.Status: Desk._status,
    wire.Links: Desk._links,
    wire.Devices: Desk._devices,
    wire.Alarms: Desk._alarms,
    wire.Acknowledge: Desk._acknowledge,
    wire.ListKeys: Desk._list_keys,
    wire.ShowKey: Desk._show_key,
    wire.ShowLineage: Desk._show_lineage,
    wire.RevokeKeys: Desk._revoke,
    wire.CompromiseScope: Desk._compromise,
    wire.Scopes: Desk._scopes,
    wire.RotateKeys: Desk._rotate,
    wire.GiveUpRotations: Desk._give_up,
    wire.Rotations: Desk._rotations,
    wire.CarryOut: Desk._carry_out,
    wire.CarryIn: Desk._carry_in,
    wire.RotationShapes: Desk._shapes,
    wire.Scrubbing: Desk._scrubbing,
    wire.ScrubNow: Desk._scrub_now,
    wire.Epochs: Desk._epochs,
    wire.RewrapKeys: Desk._rewrap,
    wire.DestructionReceipt: Desk._receipt,
    wire.ShowProvenance: Desk._provenance,
    wire.Decoys: Desk._decoys,
    wire.RenewDecoys: Desk._renew_decoys,
    wire.Pause: Desk._pause,
    wire.Resume: Desk._resume,
    wire.Shutdown: Desk._shutdown,
    wire.Reload: Desk._reload,
    wire.ExportBegin: Desk._export_begin,
    wire.ExportPage: Desk._export_page,
    wire.ProveEntry: Desk._prove,
    wire.PolicyShow: Desk._policy_show,
    wire.PolicyExplain: Desk._policy_explain,
    wire.PolicyApply: Desk._policy_apply,
    wire.Assets: Desk._assets,
    wire.Algorithms: Desk._algorithms,
    wire.Comparisons: Desk._comparisons,
    wire.Reconcile: Desk._reconcile,
    wire.ClockShow: Desk._clock,
    wire.ClockConfirm: Desk._confirm_clock,
    wire.Due: Desk._due,
}


def _ids_of(request: Request) -> tuple[UUID, ...]:
    """The keys that a request names by their ids."""
    one: bytes | None = getattr(request, "key_id", None)
    return tuple(UUID(bytes=raw) for raw in getattr(request, "key_ids", () if one is None else (one,)))


def _decoy_list(counts: tuple[decoys.DecoyCount, ...]) -> wire.DecoyList:
    return wire.DecoyList(
        decoys=tuple(
            wire.DecoyEntry(
                local=its.association.local,
                remote=its.association.remote,
                link=its.association.source,
                key_class=its.key_class,
                size_bits=its.size_bits,
                keys=its.keys,
                oldest_ns=its.oldest_ns,
            )
            for its in counts
        )
    )


def _who(operator: Operator, uid: int) -> Details:
    """What leaves of access tell of an operator: the kernel says which user asks, and there is no other source."""
    return {"fingerprint": fingerprint(operator.identity), "source": f"uid {uid}"}


def _particulars(request: Request) -> Details:
    """What of a request its leaf tells beside the action; names and keys are told under their pseudonyms."""
    match request:
        case wire.Pause(link=link) | wire.Resume(link=link):
            return {"link": link}
        case wire.Reconcile(link=link):
            return {"link": link or "all"}
        case wire.Acknowledge(code=code, subject=subject):
            return {"alarm": code, "about": subject}
        case wire.ShowKey(key_id=key_id) | wire.ShowLineage(key_id=key_id) | wire.DestructionReceipt(key_id=key_id):
            return {"key": str(UUID(bytes=key_id))}
        case wire.ShowProvenance(batch=batch, key_id=key):
            return {"batch": (batch or "")[:64]} if key is None else {"key": str(UUID(bytes=key))}
        case wire.PolicyApply(document=document, repeats=repeats, approvals=approvals):
            what: Details = {"approvals": len(approvals)}
            return what | ({"document": document_digest(document).hex()} if repeats is None else {"repeats": repeats})
        case wire.PolicyExplain(application=local, remote=remote):
            return {"local": local, "remote": remote}
        case wire.RevokeKeys(key_ids=key_ids, reason=reason):
            return {"keys": len(key_ids), "reason": reason}
        case wire.CompromiseScope(scope=scope, value=value, reason=reason):
            return {"scope": scope, "to" if scope == "application" else "about": value or "", "reason": reason}
        case wire.ProveEntry(position=position):
            return {"entry": position}
        case wire.RewrapKeys(to=to):
            return {"wrap": to}
        case wire.RotateKeys(local=local, remote=remote, link=link, note=note):
            chosen = {"local": local, "remote": remote, "link": link, "note": note}
            return {name: value for name, value in chosen.items() if value}
        case wire.GiveUpRotations(local=local, remote=remote, link=link):
            given: Details = {"give_up": True, "local": local, "remote": remote, "link": link}
            return {name: value for name, value in given.items() if value}
        case wire.CarryOut(local=local, remote=remote, link=link, again=again):
            return {"local": local, "remote": remote, "link": link, "again": again}
        case wire.CarryIn(file=file, approvals=approvals):
            return {"file": file_digest(file), "approvals": len(approvals)}
        case wire.ClockConfirm(until_ns=until_ns):
            return {"until_ns": until_ns}
        case wire.ListKeys(local=local, remote=remote) | wire.RotationShapes(local=local, remote=remote):
            return {name: value for name, value in (("local", local), ("remote", remote)) if value is not None}
    return {}


def _scrub(state: scrub.ScrubState) -> wire.ScrubStatus:
    told = {name: getattr(state, name) for name in wire.ScrubStatus.__struct_fields__}
    return wire.ScrubStatus(**told)


def _epoch_list(state: epochs.EpochsState) -> wire.EpochList:
    order = state.rewrap
    return wire.EpochList(
        keks=tuple(wire.KekEntry(**msgspec.structs.asdict(kek)) for kek in state.keks),
        rewrap=None if order is None else wire.RewrapStatus(**msgspec.structs.asdict(order)),
    )


def _fitting(assets: list[wire.Asset]) -> tuple[wire.Asset, ...]:
    """As many of the first as fit an answer, at least one of them."""
    page: list[wire.Asset] = []
    left = wire.LOG_PAGE_BYTES
    for asset in assets:
        left -= len(wire.encode_answer(asset))
        if left < 0 and page:
            break
        page.append(asset)
    return tuple(page)


def _scope(scope: scopes.ScopeState) -> wire.ScopeEntry:
    return wire.ScopeEntry(
        number=scope.number,
        link=scope.link,
        first=str(scope.first),
        last=str(scope.last),
        application=scope.application or None,
        reason=scope.reason,
        by=scope.by,
        made_ns=scope.made_ns,
        keys=scope.keys,
        moving=scope.moving,
        confirmed=scope.confirmed,
    )


def _entry(key: inventory.ListedKey) -> wire.KeyEntry:
    return wire.KeyEntry(
        number=key.number,
        key_id=str(key.key_id),
        state=key.state,
        kmip_state=key.kmip_state,
        local=key.association.local,
        remote=key.association.remote,
        link=key.link,
        key_class=key.key_class,
        policy=key.policy,
        size_bits=key.size_bits,
        batch=key.batch,
        half=key.half,
        offset_bits=key.offset_bits,
        allocated_ns=key.allocated_ns,
        ready_ns=key.ready_ns,
        delivered_ns=key.delivered_ns,
        delivered_remote_ns=key.delivered_remote_ns,
        ended_ns=key.ended_ns,
    )
