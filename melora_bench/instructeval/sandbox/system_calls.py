"""The system calls that a Python program needs, and the seccomp(2) filter that leaves it these and no other.

An allow-list: what is not on it, every call that a later kernel brings included, is answered as by a kernel that does
not have it, which is what libraries are prepared for (clone3 becomes clone). docs/sandbox.md says what is kept away by
this.
"""

import errno
import re
import struct

# name=number on x86_64/number on aarch64 (asm/unistd_64.h, asm-generic/unistd.h); -: the machine has no such call
TABLE = """
# files and folders
open=2/- openat=257/56 openat2=437/437 creat=85/- close=3/57 close_range=436/436 read=0/63 write=1/64 readv=19/65
writev=20/66 pread64=17/67 pwrite64=18/68 preadv=295/69 pwritev=296/70 preadv2=327/286 pwritev2=328/287 lseek=8/62
sendfile=40/71 copy_file_range=326/285 stat=4/- fstat=5/80 lstat=6/- newfstatat=262/79 statx=332/291 access=21/-
faccessat=269/48 faccessat2=439/439 statfs=137/43 fstatfs=138/44 truncate=76/45 ftruncate=77/46 fallocate=285/47
fsync=74/82 fdatasync=75/83 fadvise64=221/223 readahead=187/213 flock=73/32 fcntl=72/25 ioctl=16/29 dup=32/23
dup2=33/- dup3=292/24 pipe=22/- pipe2=293/59 getdents=78/- getdents64=217/61 getcwd=79/17 chdir=80/49 fchdir=81/50
mkdir=83/- mkdirat=258/34 rmdir=84/- unlink=87/- unlinkat=263/35 rename=82/- renameat=264/38 renameat2=316/276
link=86/- linkat=265/37 symlink=88/- symlinkat=266/36 readlink=89/- readlinkat=267/78 chmod=90/- fchmod=91/52
fchmodat=268/53 fchmodat2=452/452 chown=92/- lchown=94/- fchown=93/55 fchownat=260/54 umask=95/166 utime=132/-
utimes=235/- futimesat=261/- utimensat=280/88 mknod=133/- mknodat=259/33 getxattr=191/8 lgetxattr=192/9
fgetxattr=193/10 listxattr=194/11 llistxattr=195/12 flistxattr=196/13 setxattr=188/5 lsetxattr=189/6 fsetxattr=190/7
removexattr=197/14 lremovexattr=198/15 fremovexattr=199/16
# memory
mmap=9/222 munmap=11/215 mprotect=10/226 mremap=25/216 madvise=28/233 brk=12/214 msync=26/227 mincore=27/232
membarrier=324/283
# processes and threads
fork=57/- vfork=58/- clone=56/220 execve=59/221 execveat=322/281 exit=60/93 exit_group=231/94 wait4=61/260
waitid=247/95 getpid=39/172 getppid=110/173 gettid=186/178 getpgid=121/155 getpgrp=111/- setpgid=109/154
getsid=124/156 setsid=112/157 getuid=102/174 geteuid=107/175 getgid=104/176 getegid=108/177 getresuid=118/148
getresgid=120/150 getgroups=115/158 capget=125/90 prctl=157/167 arch_prctl=158/- set_tid_address=218/96
set_robust_list=273/99 get_robust_list=274/100 rseq=334/293 futex=202/98 pidfd_open=434/434 getrlimit=97/163
setrlimit=160/164 prlimit64=302/261 getrusage=98/165 times=100/153 getpriority=140/141 setpriority=141/140
getcpu=309/168 sched_yield=24/124 sched_getaffinity=204/123 sched_setaffinity=203/122 sched_getscheduler=145/120
sched_getparam=143/121 sched_get_priority_max=146/125 sched_get_priority_min=147/126 sched_rr_get_interval=148/127
uname=63/160 sysinfo=99/179 getrandom=318/278 restart_syscall=219/128
# signals
rt_sigaction=13/134 rt_sigprocmask=14/135 rt_sigreturn=15/139 rt_sigpending=127/136 rt_sigtimedwait=128/137
rt_sigsuspend=130/133 sigaltstack=131/132 signalfd=282/- signalfd4=289/74 kill=62/129 tkill=200/130 tgkill=234/131
pidfd_send_signal=424/424 pause=34/-
# time
time=201/- gettimeofday=96/169 clock_gettime=228/113 clock_getres=229/114 nanosleep=35/101 clock_nanosleep=230/115
alarm=37/- getitimer=36/102 setitimer=38/103 timer_create=222/107 timer_settime=223/110 timer_gettime=224/108
timer_getoverrun=225/109 timer_delete=226/111 timerfd_create=283/85 timerfd_settime=286/86 timerfd_gettime=287/87
# waiting
select=23/- pselect6=270/72 poll=7/- ppoll=271/73 epoll_create=213/- epoll_create1=291/20 epoll_ctl=233/21
epoll_wait=232/- epoll_pwait=281/22 epoll_pwait2=441/441 eventfd=284/- eventfd2=290/19
# sockets
socket=41/198 socketpair=53/199 bind=49/200 listen=50/201 accept=43/202 accept4=288/242 connect=42/203
getsockname=51/204 getpeername=52/205 sendto=44/206 recvfrom=45/207 sendmsg=46/211 recvmsg=47/212 sendmmsg=307/269
recvmmsg=299/243 shutdown=48/210 setsockopt=54/208 getsockopt=55/209
"""

# linux/audit.h's number of each machine's calls; both have their 32-bit words in the same order.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; others, such as AF_VSOCK, are in no network namespace.
FAMILIES = (1, 2, 10, 16)
# {call: (its argument, the values that it may have, the answer to others)}; 0 is the caller itself
ARGUMENTS: dict[str, list[tuple[int, tuple[int, ...], int]]] = {
    "socket": [(0, FAMILIES, errno.EAFNOSUPPORT)],
    "socketpair": [(0, FAMILIES, errno.EAFNOSUPPORT)],
    "prlimit64": [(0, (0,), errno.EPERM)],
    "sched_setaffinity": [(0, (0,), errno.EPERM)],
    "setpriority": [(0, (0,), errno.EPERM), (1, (0,), errno.EPERM)],
}
NAMESPACES = 0x7E020000  # CLONE_NEW*, the flags of clone that make a namespace

# linux/seccomp.h, linux/filter.h
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06


def numbers(machine: str) -> dict[str, int]:
    """{call: its number} on one of ARCHITECTURES, of the allowed calls that it has."""
    column = list(ARCHITECTURES).index(machine)
    pairs = [item.split("=") for item in re.sub("#.*", "", TABLE).split()]
    return {name: int(both.split("/")[column]) for name, both in pairs if both.split("/")[column] != "-"}


def filter_for(machine: str) -> bytes:
    """The filter's instructions (struct sock_filter); empty for a machine that is none of ARCHITECTURES.

    Another architecture's calls, which have other numbers, end the process.
    """
    if machine not in ARCHITECTURES:
        return b""
    lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCHITECTURES[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for name, number in numbers(machine).items():
        rules = [line for rule in ARGUMENTS.get(name, []) for line in _one_of(*rule)]
        if name == "clone":
            rules = [(LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NAMESPACES), (RETURN, 0, 0, REFUSE | errno.EPERM)]
        lines += [(EQUAL, 0, len(rules) + 1, number), *rules, (RETURN, 0, 0, ALLOW)]
    lines.append((RETURN, 0, 0, REFUSE | errno.ENOSYS))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _one_of(argument: int, values: tuple[int, ...], answer: int) -> list[tuple[int, int, int, int]]:
    """Go on behind these instructions if the argument's low word,
    which is all that the kernel takes, is one of `values`."""
    tests = [(EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [(LOAD, 0, 0, 16 + 8 * argument), *tests, (RETURN, 0, 0, REFUSE | answer)]
