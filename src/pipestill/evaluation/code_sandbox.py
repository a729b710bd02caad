"""The inside of the sandbox: run as a script in a process of its own, never imported by others.

    python -I -S -B code_sandbox.py RESULT_FD  <  {"program": …, "token": …, "limits": …}

It takes every right away from its own process and then runs the program. Layers, each of which
would do for most programs: resource limits; no network namespace where the system allows one;
another user where it is root; a system-call filter (Linux on x86-64 and arm64) under which nothing
can be written, started, signalled or connected; and the same refusals inside Python everywhere,
which also let no file be read but the standard library's.
Only the standard library is used, so that nothing of ours or of the user's is loaded.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import sys

CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = (
    0x04000000,
    0x08000000,
    0x10000000,
    0x40000000,
)
NOBODY = 65534
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # REFUSE gives EPERM
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# machine → (its audit constant, column of REFUSED)
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# open and openat: (number, which argument holds the flags)
OPENING = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
# System calls that a computing program does not need: (x86-64, arm64); -1 = the machine has none.
REFUSED = {
    "fork": (57, -1), "vfork": (58, -1), "clone": (56, 220), "clone3": (435, 435),
    "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "setsid": (112, 157), "setpgid": (109, 154),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206),
    "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "creat": (85, -1), "openat2": (437, 437), "mkdir": (83, -1), "mkdirat": (258, 34),
    "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35), "rename": (82, -1),
    "renameat": (264, 38), "renameat2": (316, 276), "link": (86, -1), "linkat": (265, 37),
    "symlink": (88, -1), "symlinkat": (266, 36), "mknod": (133, -1), "mknodat": (259, 33),
    "truncate": (76, 45), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, -1), "lchown": (94, -1), "fchown": (93, 55),
    "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "personality": (135, 92),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_create": (319, 279),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "mq_open": (240, 180), "shmget": (29, 194), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161),
}  # fmt: skip
READABLE = tuple(
    os.path.realpath(path) + os.sep for path in (os.path.dirname(os.__file__), os.getcwd())
)
REFUSED_EVENTS = (
    "socket.", "subprocess.", "ctypes.", "shutil.", "tempfile.", "ftplib.", "smtplib.", "urllib.",
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.unshare", "pty.",
    "signal.pthread_kill", "_thread.start_new_thread", "syslog.", "webbrowser.",
)  # fmt: skip


def limit(limits: dict[str, float]) -> None:
    """CPU seconds, address space, size of written files, processes, open files, core dumps."""
    seconds = int(limits["timeout_s"]) + 1
    wanted = {
        "CPU": (seconds, seconds + 1),
        "AS": (int(limits["memory_mb"] * 2**20),) * 2,
        "FSIZE": (0, 0),
        "NPROC": (0, 0),
        "NOFILE": (32, 32),
        "CORE": (0, 0),
    }
    for name, pair in wanted.items():
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), pair)


def leave_network() -> None:
    """A network of its own without any interface, where the system gives one."""
    flags = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if os.geteuid() != 0:
        flags |= CLONE_NEWUSER
    with contextlib.suppress(Exception):
        ctypes.CDLL(None, use_errno=True).unshare(flags)


def become_nobody() -> None:
    """Root becomes nobody, where nobody can read the standard library that programs import."""
    if os.geteuid() != 0 or not readable_by_all(os.path.dirname(os.__file__)):
        return
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def readable_by_all(path: str) -> bool:
    """Whether every folder on the way may be entered by anyone."""
    path = os.path.realpath(path)
    while os.stat(path).st_mode & 0o005 == 0o005 and path != "/":
        path = os.path.dirname(path)
    return path == "/"


def filter_calls() -> bool:
    """Installs the system-call filter; false where the machine has none."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        code = b"".join(instructions(machine))
        buffer = ctypes.create_string_buffer(code, len(code))

        class Program(ctypes.Structure):
            _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

        program = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
        zero = ctypes.c_ulong(0)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
            return False
        mode = ctypes.c_ulong(SECCOMP_MODE_FILTER)
        return bool(libc.prctl(PR_SET_SECCOMP, mode, ctypes.byref(program), zero, zero) == 0)
    except (OSError, AttributeError):
        return False


def instructions(machine: str) -> list[bytes]:
    """The filter in classic BPF; an instruction is code, jump if true, jump if false, value."""

    def word(code: int, yes: int, no: int, value: int) -> bytes:
        return code.to_bytes(2, "little") + bytes([yes, no]) + value.to_bytes(4, "little")

    def load(offset: int) -> bytes:
        return word(0x20, 0, 0, offset)

    def equal(value: int, skip: int) -> bytes:  # goes on where equal, else skips
        return word(0x15, 0, skip, value)

    def result(value: int) -> bytes:
        return word(0x06, 0, 0, value)

    constant, column = MACHINES[machine]
    code = [load(4), word(0x15, 1, 0, constant), result(KILL), load(0)]
    code += [word(0x35, 0, 1, 0x40000000), result(REFUSE)]  # the x32 calls of x86-64
    for numbers in REFUSED.values():
        if numbers[column] >= 0:
            code += [equal(numbers[column], 1), result(REFUSE)]
    for number, argument in OPENING[machine]:
        code += [equal(number, 4), load(16 + 8 * argument)]
        code += [word(0x45, 0, 1, WRITING), result(REFUSE), result(ALLOW)]
    return [*code, result(ALLOW)]


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Python's own look at what a program does; it cannot be taken away again.

    Files are read from the standard library and the program's empty folder alone.
    """
    if event == "open":
        path, _, flags = arguments
        if (isinstance(flags, int) and flags & WRITING) or not may_read(path):
            raise PermissionError(f"opening {path!r} is not allowed here")
    elif event.startswith(REFUSED_EVENTS):
        raise PermissionError(f"{event} is not allowed here")


def may_read(path: object) -> bool:
    """Whether the path lies in a folder of `READABLE`; an open file's number always may."""
    if not isinstance(path, str | bytes):
        return isinstance(path, int)
    return os.path.realpath(os.fsdecode(path)).startswith(READABLE)


def run(program: str) -> str:
    """Runs the program; "" where it ends without an error, else the error's name."""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except BaseException as error:  # SystemExit too: a program that leaves early has not passed
        return type(error).__name__
    return ""


def main() -> None:
    """Reads the job, gives up all rights, runs the program, reports through the pipe."""
    job = json.loads(sys.stdin.buffer.read())
    pipe, token = int(sys.argv[1]), job["token"]
    os.closerange(3, pipe)
    leave_network()
    become_nobody()
    limit(job["limits"])
    filtered = filter_calls()
    sys.addaudithook(refuse)
    error = run(job["program"])
    report = {"token": token, "error": error, "filtered": filtered}
    os.write(pipe, json.dumps(report).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
