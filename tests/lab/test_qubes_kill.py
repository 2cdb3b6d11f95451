"""Killed at any moment of a change, again and again: what is forbidden never passes, what is permitted comes back."""

import os
import random
import signal
import time
from contextlib import ExitStack
from subprocess import Popen

from lab.qubes_prober import EVIL6, PORT, Prober
from lab.qubes_world import FORBIDDEN4, FORBIDDEN6, FREE4, GITHUB4, LISTED, OUTSIDE4, World, soon
from lab.sockets import Server, UdpEcho, echo, eventually
from proxyfw.demo.internet import ADDRESS_OF_EVIL

ROUNDS = int(os.environ.get("PROXYFW_KILLS", "15"))
LOOK_EVERY = 10  # rounds

PERMITTED = ("action=accept", f"action=accept dst4={FREE4}")  # the latest rule says which of the two is in force


def test_no_kill_opens_anything_and_each_restart_has_the_latest_rules(fresh_netvm):
    world, dice = fresh_netvm, random.Random(0)
    with ExitStack() as stack:
        for address in (FORBIDDEN4, FORBIDDEN6):
            stack.enter_context(Server(world.lab, address, PORT, echo))
            stack.enter_context(UdpEcho(world.lab, address, PORT))
        prober = stack.enter_context(Prober(world, "dev"))
        would_be_seen(world, prober)
        world.lab.end_service(signal.SIGKILL)
        longest = 2 * time_to_start(world)
        for turn in range(1, ROUNDS + 1):
            service = world.lab.begin_service()
            end = time.monotonic() + dice.uniform(0.0, longest)
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, dice.uniform(0.0, 0.1)))
                change(world, service, dice)
            world.lab.kill(service)
            if turn % LOOK_EVERY == 0:
                leaked = prober.leaked()
                assert not leaked, (turn, leaked)
                world.lab.start_service()
                is_right(world)
                world.lab.end_service(signal.SIGKILL)
        assert prober.goes_on()
        assert not prober.leaked()
        assert min(prober.tries().values()) > ROUNDS


def time_to_start(world: World) -> float:
    """Seconds until the service is ready. One that lives for up to twice as long is killed before as often as after."""
    begin = time.monotonic()
    world.lab.start_service()
    taken = time.monotonic() - begin
    world.lab.end_service(signal.SIGKILL)
    return taken


def would_be_seen(world: World, prober: Prober) -> None:
    """The prober tells of all that it reaches, once that is permitted."""
    addresses = [f"dst4={address}" for address in (FORBIDDEN4, ADDRESS_OF_EVIL)]
    addresses += [f"dst6={address}" for address in (FORBIDDEN6, EVIL6)]
    world.rules("dev", *(f"action=accept {address}" for address in addresses))
    kinds = {"TLS", "TLS over IPv6", "plain TCP", "plain TCP over IPv6", "UDP", "UDP over IPv6", "ping"}
    assert eventually(lambda: set(prober.leaked()) >= kinds, 10.0), prober.leaked()
    world.undo()
    assert prober.goes_on()
    prober.forget()


def change(world: World, service: Popen[str], dice: random.Random) -> None:
    """One of the changes that a netvm lives with; none of them permits what the prober tries."""
    what = dice.randrange(5)
    if what == 0:
        world.rules("dev", *dice.sample(PERMITTED, len(PERMITTED)))
    elif what == 1:
        world.rules("dev", f"action=drop dst4={FREE4}", "action=accept dsthost=host.example", "action=drop")
    elif what == 2:
        world.detach("dev")
        world.attach("dev")
    elif what == 3:
        mode = dice.choice(("enforce", "observe"))
        world.lab.write_config({**LISTED, "twin": {"profiles": ["tools"], "mode": mode}})
        service.send_signal(signal.SIGHUP)
    else:
        world.vm_config("proxyfw-guest", dice.choice(("tools", "nets")))


def is_right(world: World) -> None:
    """What is permitted works, and the latest rule is in force."""
    world.lab.write_config(LISTED)
    assert world.tls("dev", GITHUB4, "github.com")
    assert world.lab.curl("dev", "https://outside.example/").returncode == 0
    for rules, reached in ((("action=drop dsthost=outside.example",), False), (("action=accept",), True)):
        world.rules("dev", *rules)
        assert soon(lambda reached=reached: world.tls("dev", OUTSIDE4, "outside.example") is reached)
    world.rules("dev", "action=drop dsthost=outside.example")
    world.lab.end_service(signal.SIGKILL)
    world.lab.start_service()
    assert not world.tls("dev", OUTSIDE4, "outside.example")
    assert world.tls("dev", GITHUB4, "github.com")
    world.undo()
