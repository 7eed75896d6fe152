/* Loaded before libc: counts a process's writes, syncs and sends, fails or ends it at the N-th of a kind, and records
 * what the files of one directory undergo. Every call goes to the kernel by its number, so that nothing is wrapped
 * twice. Files count below the scope only; sockets count everywhere. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum call { WRITE, SYNC, TRUNCATE, UNLINK, RENAME, SEND, CALLS };
enum act { NOTHING, KILL_BEFORE, KILL_AFTER, FAIL_ENOSPC, FAIL_EIO, SHORT, FULL };
enum op { CREATED = 1, WRITTEN, TRUNCATED, SYNCED, DIRECTORY_SYNCED, RENAMED, UNLINKED, NOTED };

struct record { /* a header of the trace; `name_bytes` and `data_bytes` follow */
    uint32_t op, name_bytes;
    uint64_t inode, value, data_bytes;
};

static char scope[PATH_MAX];
static size_t scope_bytes;
static atomic_ullong counts[CALLS], nth;
static atomic_int armed_call = -1, armed_act, fired, rest_fails;
static int trace_fd = -1, fired_fd = -1;
static atomic_flag trace_lock = ATOMIC_FLAG_INIT;

void qkn_scope(const char *directory)
{
    snprintf(scope, sizeof scope, "%s/", directory);
    scope_bytes = strlen(scope);
}

void qkn_arm(int call, unsigned long long number, int act)
{
    for (int i = 0; i < CALLS; i++)
        counts[i] = 0;
    nth = number;
    armed_act = act;
    fired = rest_fails = 0;
    armed_call = call;
}

unsigned long long qkn_count(int call) { return counts[call]; }
int qkn_fired(void) { return fired; }
void qkn_trace(int fd) { trace_fd = fd; }

static void record(enum op op, const char *name, uint64_t inode, uint64_t value, const void *data, size_t bytes)
{
    if (trace_fd < 0)
        return;
    struct record head = {op, name ? (uint32_t)strlen(name) : 0, inode, value, bytes};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)name, head.name_bytes}, {(void *)data, bytes}};
    while (atomic_flag_test_and_set(&trace_lock))
        ;
    if (syscall(SYS_writev, trace_fd, parts, 3) != (long)(sizeof head + head.name_bytes + bytes))
        abort(); /* a trace with a hole would rebuild states that never were */
    atomic_flag_clear(&trace_lock);
}

void qkn_note(unsigned long long value) { record(NOTED, NULL, 0, value, NULL, 0); }

/* 'f' regular file in scope, 'd' directory in scope or the scope itself, 's' socket, 0 anything else. */
static char kind_of(int fd, uint64_t *inode)
{
    struct stat status;
    char link[64], path[PATH_MAX];
    if (fstat(fd, &status) != 0)
        return 0;
    if (inode)
        *inode = status.st_ino;
    if (S_ISSOCK(status.st_mode))
        return 's';
    if (!scope_bytes || (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    if (S_ISDIR(status.st_mode))
        return strncmp(path, scope, scope_bytes - 1) == 0 ? 'd' : 0;
    return strncmp(path, scope, scope_bytes) == 0 ? 'f' : 0;
}

static int in_scope(const char *path) { return scope_bytes && strncmp(path, scope, scope_bytes) == 0; }

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void tell_fired(void)
{
    fired = 1;
    if (fired_fd >= 0 && syscall(SYS_write, fired_fd, "1", 1) != 1)
        abort();
}

/* What befalls this call: NOTHING, KILL_AFTER, SHORT, or an errno that it fails with, negative. */
static int befalls(enum call call)
{
    unsigned long long now = ++counts[call];
    if ((int)call != armed_call)
        return NOTHING;
    if (rest_fails && (armed_act == FULL || rest_fails-- > 0))
        return -ENOSPC;
    if (now != nth)
        return NOTHING;
    tell_fired();
    switch ((enum act)armed_act) {
    case KILL_BEFORE: die(); return NOTHING;
    case KILL_AFTER: return KILL_AFTER;
    case FAIL_ENOSPC: return call == SEND ? -ECONNRESET : -ENOSPC;
    case FAIL_EIO: return call == SEND ? -EPIPE : -EIO;
    case SHORT: rest_fails = 1; return SHORT;
    case FULL: rest_fails = 1; return -ENOSPC;
    default: return NOTHING;
    }
}

#define FATE(call)                                                                                                     \
    int fate = befalls(call);                                                                                          \
    if (fate < 0) {                                                                                                    \
        errno = -fate;                                                                                                 \
        return -1;                                                                                                     \
    }
#define DONE(result)                                                                                                   \
    do {                                                                                                               \
        if (fate == KILL_AFTER)                                                                                        \
            die();                                                                                                     \
        return result;                                                                                                 \
    } while (0)

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    uint64_t inode;
    if (kind_of(fd, &inode) != 'f')
        return syscall(SYS_pwrite64, fd, data, bytes, offset);
    FATE(WRITE)
    ssize_t result = syscall(SYS_pwrite64, fd, data, fate == SHORT && bytes > 1 ? bytes / 2 : bytes, offset);
    if (result > 0)
        record(WRITTEN, NULL, inode, (uint64_t)offset, data, (size_t)result);
    DONE(result);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) { return pwrite64(fd, data, bytes, offset); }

ssize_t write(int fd, const void *data, size_t bytes)
{
    uint64_t inode;
    char kind = kind_of(fd, &inode);
    if (kind != 'f' && kind != 's')
        return syscall(SYS_write, fd, data, bytes);
    FATE(kind == 's' ? SEND : WRITE)
    ssize_t result = syscall(SYS_write, fd, data, fate == SHORT && bytes > 1 ? bytes / 2 : bytes);
    if (kind == 'f' && result > 0)
        record(WRITTEN, NULL, inode, (uint64_t)(lseek(fd, 0, SEEK_CUR) - result), data, (size_t)result);
    DONE(result);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (kind_of(fd, NULL) != 's')
        return syscall(SYS_writev, fd, parts, count);
    FATE(SEND)
    ssize_t result = syscall(SYS_writev, fd, parts, count);
    DONE(result);
}

ssize_t sendto(int fd, const void *data, size_t bytes, int flags, const struct sockaddr *to, socklen_t size)
{
    FATE(SEND)
    ssize_t result = syscall(SYS_sendto, fd, data, bytes, flags, to, size);
    DONE(result);
}

ssize_t send(int fd, const void *data, size_t bytes, int flags) { return sendto(fd, data, bytes, flags, NULL, 0); }

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    FATE(SEND)
    ssize_t result = syscall(SYS_sendmsg, fd, message, flags);
    DONE(result);
}

static int sync_file(long number, int fd)
{
    uint64_t inode;
    char kind = kind_of(fd, &inode);
    if (kind != 'f' && kind != 'd')
        return (int)syscall(number, fd);
    FATE(SYNC)
    int result = (int)syscall(number, fd);
    if (result == 0)
        record(kind == 'd' ? DIRECTORY_SYNCED : SYNCED, NULL, inode, 0, NULL, 0);
    DONE(result);
}

int fsync(int fd) { return sync_file(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_file(SYS_fdatasync, fd); }

int ftruncate64(int fd, off64_t size)
{
    uint64_t inode;
    if (kind_of(fd, &inode) != 'f')
        return (int)syscall(SYS_ftruncate, fd, size);
    FATE(TRUNCATE)
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (result == 0)
        record(TRUNCATED, NULL, inode, (uint64_t)size, NULL, 0);
    DONE(result);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int unlink_at(int directory, const char *path, int flags)
{
    if (!in_scope(path))
        return (int)syscall(SYS_unlinkat, directory, path, flags);
    FATE(UNLINK)
    int result = (int)syscall(SYS_unlinkat, directory, path, flags);
    if (result == 0)
        record(UNLINKED, path, 0, 0, NULL, 0);
    DONE(result);
}

int unlink(const char *path) { return unlink_at(AT_FDCWD, path, 0); }
int unlinkat(int directory, const char *path, int flags) { return unlink_at(directory, path, flags); }

int rename(const char *from, const char *to)
{
    if (!in_scope(from))
        return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    FATE(RENAME)
    int result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (result == 0)
        record(RENAMED, from, 0, 0, to, strlen(to));
    DONE(result);
}

static int open_at(int directory, const char *path, int flags, mode_t mode)
{
    int is_new = (flags & O_CREAT) && in_scope(path) && access(path, F_OK) != 0;
    int fd = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (is_new && fd >= 0) {
        struct stat status;
        if (fstat(fd, &status) == 0)
            record(CREATED, path, status.st_ino, 0, NULL, 0);
    }
    return fd;
}

#define OPEN(name, before, directory, ...)                                                                             \
    int name before                                                                                                    \
    {                                                                                                                  \
        mode_t mode = 0;                                                                                               \
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                                   \
            va_list rest;                                                                                              \
            va_start(rest, flags);                                                                                     \
            mode = va_arg(rest, mode_t);                                                                               \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        return open_at(directory, path, flags, mode);                                                                  \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int directory, const char *path, int flags, ...), directory)
OPEN(openat64, (int directory, const char *path, int flags, ...), directory)

/* A process that was started, not forked, finds its orders in the environment: CALL:NTH:ACT and where to tell. */
__attribute__((constructor)) static void read_orders(void)
{
    const char *directory = getenv("INTERPOSE_SCOPE"), *orders = getenv("INTERPOSE_ARM");
    const char *told = getenv("INTERPOSE_FIRED");
    int call, act;
    unsigned long long number;
    if (directory)
        qkn_scope(directory);
    if (told)
        fired_fd = (int)syscall(SYS_openat, AT_FDCWD, told, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (orders && sscanf(orders, "%d:%llu:%d", &call, &number, &act) == 3)
        qkn_arm(call, number, act);
}
