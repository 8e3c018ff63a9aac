/* Preloaded (LD_PRELOAD) into a training process: numbers its writing calls below one directory, and at a chosen one
 * kills the process or its group, or lets the disk be full or read-only from then on. It can also make the clock jump.
 * See killing.py, its only user. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum effect { TRACE, KILL_GROUP, KILL_PROCESS, FULL_DISK, READ_ONLY };

static char root[PATH_MAX];
static size_t root_length; /* 0: not armed */
static char counted[PATH_MAX]; /* only calls whose text holds this are numbered */
static long fatal_call;
static enum effect effect;
static int log_fd = -1;
static atomic_long calls;
static long clock_jump_s;
static atomic_long clock_reads;

/* Calls below `directory` whose "<call> <path>" holds `text` are numbered from 1 and noted in `log`, a line each; the one
 * of number `call` has the effect `what`. */
void shim_arm(const char *directory, const char *text, long call, int what, const char *log) {
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    fatal_call = call;
    effect = what;
    strncpy(counted, text, sizeof counted - 1);
    strncpy(root, directory, sizeof root - 1);
    root_length = strlen(root);
}

/* From now on the wall clock jumps by so many seconds, forth and back, at every hundredth look at it. */
void shim_jump_clock(long seconds) { clock_jump_s = seconds; }

#define REAL(name)                                                                              \
    ({                                                                                          \
        static __typeof__(&name) real;                                                          \
        if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                           \
        real;                                                                                   \
    })

static void path_of_fd(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

/* 0: go on; -1: this is the fatal write, of which half may still happen; else the errno with which the call fails. */
static int reach_path(const char *call, int takes_space, const char *path) {
    if (!root_length || strncmp(path, root, root_length) || (path[root_length] && path[root_length] != '/')) return 0;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    if (!strstr(line, counted)) return 0;
    long number = atomic_fetch_add(&calls, 1) + 1;
    syscall(SYS_write, log_fd, line, (size_t)length);
    if (!fatal_call || number < fatal_call) return 0;
    if (effect == FULL_DISK) return takes_space ? ENOSPC : 0;
    if (effect == READ_ONLY) return EROFS;
    return number == fatal_call && effect != TRACE ? -1 : 0;
}

static void die(void) {
    kill(effect == KILL_GROUP ? 0 : getpid(), SIGKILL);
    for (;;) pause();
}

static int reach(const char *call, int takes_space, int at, const char *path) {
    char whole[2 * PATH_MAX] = "";
    if (!root_length) return 0;
    if (path[0] != '/') {
        if (at == AT_FDCWD) {
            if (!getcwd(whole, PATH_MAX)) return 0;
        } else {
            path_of_fd(at, whole);
        }
        strcat(whole, "/");
    }
    strncat(whole, path, PATH_MAX - 1);
    int verdict = reach_path(call, takes_space, whole);
    if (verdict < 0) die();
    return verdict;
}

static int reach_fd(const char *call, int fd) {
    char path[PATH_MAX];
    if (!root_length) return 0;
    path_of_fd(fd, path);
    return reach_path(call, 1, path);
}

#define FAIL_OR(verdict, failed, go_on)                                                         \
    ({                                                                                          \
        int reason = (verdict);                                                                 \
        reason ? (errno = reason, (failed)) : (go_on);                                          \
    })

#define OPEN(name)                                                                              \
    int name(const char *path, int flags, ...) {                                                \
        va_list more;                                                                           \
        va_start(more, flags);                                                                  \
        mode_t mode = va_arg(more, mode_t);                                                     \
        va_end(more);                                                                           \
        int writes = (flags & O_ACCMODE) != O_RDONLY;                                           \
        return FAIL_OR(writes ? reach("open", 1, AT_FDCWD, path) : 0, -1, REAL(name)(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                            \
    int name(int at, const char *path, int flags, ...) {                                        \
        va_list more;                                                                           \
        va_start(more, flags);                                                                  \
        mode_t mode = va_arg(more, mode_t);                                                     \
        va_end(more);                                                                           \
        int writes = (flags & O_ACCMODE) != O_RDONLY;                                           \
        return FAIL_OR(writes ? reach("open", 1, at, path) : 0, -1, REAL(name)(at, path, flags, mode)); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                             \
    FILE *name(const char *path, const char *mode) {                                            \
        int writes = strpbrk(mode, "wa+") != NULL;                                              \
        return FAIL_OR(writes ? reach("open", 1, AT_FDCWD, path) : 0, NULL, REAL(name)(path, mode)); \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* The fatal write gets half of its bytes to the disk: what a process leaves that is killed while it writes. */
#define WRITE(name, tail_declaration, tail)                                                     \
    ssize_t name(int fd, const void *bytes, size_t count tail_declaration) {                    \
        int verdict = reach_fd("write", fd);                                                    \
        if (verdict < 0) {                                                                      \
            if (count > 1) REAL(name)(fd, bytes, count / 2 tail);                               \
            die();                                                                              \
        }                                                                                       \
        return FAIL_OR(verdict, -1, REAL(name)(fd, bytes, count tail));                         \
    }
#define COMMA ,
WRITE(write, , )
WRITE(pwrite, COMMA off_t offset, COMMA offset)
WRITE(pwrite64, COMMA off64_t offset, COMMA offset)

size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
    int verdict = reach_fd("write", fileno(file));
    if (verdict < 0) {
        REAL(fwrite)(bytes, 1, size * count / 2, file);
        fflush(file);
        die();
    }
    return FAIL_OR(verdict, 0, REAL(fwrite)(bytes, size, count, file));
}

#define ON_FD(result, name, declaration, arguments, fd)                                         \
    result name declaration {                                                                   \
        int verdict = reach_fd(#name, fd);                                                      \
        if (verdict < 0) die();                                                                 \
        return FAIL_OR(verdict, -1, REAL(name) arguments);                                      \
    }
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
ON_FD(ssize_t, sendfile, (int to, int from, off_t *offset, size_t count), (to, from, offset, count), to)
ON_FD(ssize_t, sendfile64, (int to, int from, off64_t *offset, size_t count), (to, from, offset, count), to)
ON_FD(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t count, unsigned flags),
      (from, a, to, b, count, flags), to)
ON_FD(int, fsync, (int fd), (fd), fd)
ON_FD(int, fdatasync, (int fd), (fd), fd)
ON_FD(int, ftruncate, (int fd, off_t length), (fd, length), fd)
ON_FD(int, ftruncate64, (int fd, off64_t length), (fd, length), fd)

#define ON_PATH(name, takes_space, at, path, declaration, arguments)                            \
    int name declaration { return FAIL_OR(reach(#name, takes_space, at, path), -1, REAL(name) arguments); }
ON_PATH(rename, 0, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(renameat, 0, to_at, to, (int at, const char *from, int to_at, const char *to), (at, from, to_at, to))
ON_PATH(unlink, 0, AT_FDCWD, path, (const char *path), (path))
ON_PATH(unlinkat, 0, at, path, (int at, const char *path, int flags), (at, path, flags))
ON_PATH(rmdir, 0, AT_FDCWD, path, (const char *path), (path))
ON_PATH(mkdir, 1, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, 1, at, path, (int at, const char *path, mode_t mode), (at, path, mode))
ON_PATH(truncate, 0, AT_FDCWD, path, (const char *path, off_t length), (path, length))
ON_PATH(link, 1, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(symlink, 1, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_PATH(chmod, 0, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))

static time_t jump(void) {
    if (!clock_jump_s) return 0;
    long turn = atomic_fetch_add(&clock_reads, 1) / 100 % 3;
    return turn == 1 ? clock_jump_s : turn == 2 ? -clock_jump_s : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (!result) now->tv_sec += jump();
    return result;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
