/* A preloaded library that puts a faulty disk under the journal of its process. Environment variables select the
   faults:

     FAULTY_DISK_FAIL=<file>                     syncs of segments fail while the file exists
     FAULTY_DISK_POINTS=<file>                   each point is appended to the file, one per line
     FAULTY_DISK_KILL=<n> <phase> <point>        the process is killed at the n-th passage of the point
     FAULTY_DISK_LATER=<seconds>                 the time of day is this much later, or earlier if negative
     FAULTY_DISK_HASTE=<factor>                  the clock of the thread `retention` is this much faster

   A point is a system call that changes the journal's directory: "<thread> <call> <kind of file>". The phase
   is `before` the call, after `half` of its bytes, `after` the call, or `power`: before the call, with a loss of power,
   which undoes all unsynced changes of files and of names in the directory. Removed files stay removed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The function with this name that this library wraps. */
#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

#define SECOND 1000000000LL

/* Held by a call that changes the journal, so that points have an order. */
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

static int points = -1;
static int kill_at, passed;
static char kill_phase[16], kill_point[64];
static long long later, haste, began;

static long long nanoseconds(const struct timespec *time) {
    return time->tv_sec * SECOND + time->tv_nsec;
}

static void set(struct timespec *time, long long nanoseconds) {
    time->tv_sec = nanoseconds / SECOND;
    time->tv_nsec = nanoseconds % SECOND;
}

__attribute__((constructor)) static void read_environment(void) {
    const char *value = getenv("FAULTY_DISK_POINTS");
    if (value) points = open(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    value = getenv("FAULTY_DISK_KILL");
    if (value) sscanf(value, "%d %15s %63[^\n]", &kill_at, kill_phase, kill_point);
    value = getenv("FAULTY_DISK_LATER");
    if (value) later = atoll(value);
    value = getenv("FAULTY_DISK_HASTE");
    struct timespec now;
    REAL(clock_gettime)(CLOCK_MONOTONIC, &now);
    began = nanoseconds(&now);
    if (value) haste = atoll(value);
}

/* The changes that can be undone, the latest first. */
static struct change {
    struct change *before;
    /* A change of a file's bytes: the file, and the earlier bytes. */
    int fd;
    ino_t file;
    off_t size, offset;
    ssize_t length;
    char *bytes;
    /* A change of a name: the new name, and the old name if there was one. */
    char *name, *old_name;
} *changes;

static struct change *change(void) {
    struct change *made = calloc(1, sizeof *made);
    made->before = changes;
    made->fd = -1;
    return changes = made;
}

static void bytes_change(int fd, off_t offset, size_t length) {
    struct stat stat;
    fstat(fd, &stat);
    struct change *made = change();
    made->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    made->file = stat.st_ino;
    made->size = stat.st_size;
    made->offset = offset;
    made->bytes = malloc(length);
    made->length = pread(fd, made->bytes, length, offset);
}

static void name_changes(const char *old_name, const char *name) {
    struct change *made = change();
    made->name = strdup(name);
    if (old_name) made->old_name = strdup(old_name);
}

/* Drops the changes that a sync of this file or directory has put on the disk. */
static void forget(int fd) {
    struct stat stat;
    fstat(fd, &stat);
    for (struct change **at = &changes; *at;) {
        struct change *made = *at;
        if (S_ISDIR(stat.st_mode) ? made->name == NULL : made->fd < 0 || made->file != stat.st_ino) {
            at = &made->before;
            continue;
        }
        *at = made->before;
        if (made->fd >= 0) close(made->fd);
        free(made->bytes);
        free(made->name);
        free(made->old_name);
        free(made);
    }
}

static void undo_all(void) {
    for (struct change *made = changes; made; made = made->before) {
        if (made->fd >= 0) {
            if (made->length > 0) REAL(pwrite64)(made->fd, made->bytes, made->length, made->offset);
            REAL(ftruncate64)(made->fd, made->size);
        } else if (made->old_name) {
            REAL(rename)(made->name, made->old_name);
        } else {
            REAL(unlink)(made->name);
        }
    }
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* The kind of the file at `path`; NULL if it is not a file of the journal. */
static const char *kind_of(const char *path) {
    const char *name = strstr(path, "/journal");
    if (name == NULL || strchr("/", name[8]) == NULL) return NULL;
    if (strstr(name, ".torn")) return "torn";
    if (strstr(name, ".segment")) return "segment";
    if (strstr(name, "spare.new")) return "spare";
    return strstr(name, ".new") ? "unnamed" : "directory";
}

static const char *kind_of_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return kind_of(path);
}

/* Whether the process is to be killed here, in phase `phase`. */
static int is_due(const char *phase) {
    return passed == kill_at && strcmp(phase, kill_phase) == 0;
}

static __thread int is_point;

/* Passes a point, and locks the journal until `left` is called. */
static void enter(const char *call, const char *kind) {
    char thread[16], point[64];
    pthread_getname_np(pthread_self(), thread, sizeof thread);
    snprintf(point, sizeof point, "%s %s %s\n", thread, call, kind);
    pthread_mutex_lock(&one);
    if (points >= 0 && write(points, point, strlen(point)) < 0) abort();
    point[strlen(point) - 1] = 0;
    is_point = kill_at > 0 && strcmp(point, kill_point) == 0;
    if (!is_point) return;
    passed++;
    if (is_due("power")) undo_all();
    if (is_due("power") || is_due("before")) end();
}

static int is_half(void) { return is_point && is_due("half"); }

static void leave(void) {
    if (is_point && is_due("after")) end();
    pthread_mutex_unlock(&one);
}

/* A segment's header has 64 bytes, followed by the first record. Records may overwrite preallocated zeros. */
static const char *name_of_write(int fd, size_t length, off64_t offset) {
    struct stat stat;
    fstat(fd, &stat);
    int is_over = stat.st_size > offset;
    if (offset == 0 && length == 64) return "pwrite-header";
    if (offset == 64) return is_over ? "overwrite-first" : "pwrite-first";
    return is_over ? "overwrite" : "pwrite";
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    const char *kind = kind_of_fd(fd);
    if (kind == NULL) return REAL(pwrite64)(fd, bytes, length, offset);
    enter(name_of_write(fd, length, offset), kind);
    bytes_change(fd, offset, length);
    ssize_t written = REAL(pwrite64)(fd, bytes, is_half() ? length / 2 : length, offset);
    if (is_half()) end();
    leave();
    return written;
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t length, unsigned flags) {
    const char *kind = kind_of_fd(out);
    if (kind == NULL) return REAL(copy_file_range)(in, in_at, out, out_at, length, flags);
    enter("copy", kind);
    bytes_change(out, lseek(out, 0, SEEK_CUR), length);
    ssize_t copied = REAL(copy_file_range)(in, in_at, out, out_at, is_half() ? length / 2 : length, flags);
    if (is_half()) end();
    leave();
    return copied;
}

int ftruncate64(int fd, off64_t size) {
    const char *kind = kind_of_fd(fd);
    if (kind == NULL) return REAL(ftruncate64)(fd, size);
    enter("ftruncate", kind);
    struct stat stat;
    fstat(fd, &stat);
    bytes_change(fd, size, stat.st_size > size ? stat.st_size - size : 0);
    int result = REAL(ftruncate64)(fd, size);
    leave();
    return result;
}

static int fails(const char *kind) {
    const char *fault = getenv("FAULTY_DISK_FAIL");
    return fault && strcmp(kind, "segment") == 0 && access(fault, F_OK) == 0;
}

static int sync_of(int fd, const char *name, int (*real)(int)) {
    const char *kind = kind_of_fd(fd);
    if (kind == NULL) return real(fd);
    if (fails(kind)) {
        errno = EIO;
        return -1;
    }
    enter(name, kind);
    int result = real(fd);
    if (result == 0) forget(fd);
    leave();
    return result;
}

int fdatasync(int fd) { return sync_of(fd, "fdatasync", REAL(fdatasync)); }
int fsync(int fd) { return sync_of(fd, "fsync", REAL(fsync)); }

int rename(const char *from, const char *to) {
    const char *kind = kind_of(from);
    if (kind == NULL) return REAL(rename)(from, to);
    enter("rename", kind);
    int result = REAL(rename)(from, to);
    if (result == 0) name_changes(from, to);
    leave();
    return result;
}

int unlink(const char *path) {
    const char *kind = kind_of(path);
    if (kind == NULL || access(path, F_OK) != 0) return REAL(unlink)(path);
    enter("unlink", kind);
    int result = REAL(unlink)(path);
    leave();
    return result;
}

int mkdir(const char *path, mode_t mode) {
    const char *kind = kind_of(path);
    if (kind == NULL) return REAL(mkdir)(path, mode);
    enter("mkdir", kind);
    int result = REAL(mkdir)(path, mode);
    leave();
    return result;
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    const char *kind = flags & O_CREAT ? kind_of(path) : NULL;
    if (kind == NULL) return REAL(open64)(path, flags, mode);
    enter("create", kind);
    int is_new = access(path, F_OK) != 0;
    int fd = REAL(open64)(path, flags, mode);
    if (fd >= 0 && is_new) name_changes(NULL, path);
    leave();
    return fd;
}

static int is_hasty(void) {
    char thread[16];
    return haste && pthread_getname_np(pthread_self(), thread, sizeof thread) == 0
        && strcmp(thread, "retention") == 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = REAL(clock_gettime)(clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec += later;
    if (clock == CLOCK_MONOTONIC && is_hasty()) set(time, began + (nanoseconds(time) - began) * haste);
    return result;
}

/* A thread waits by this call, with or without a timeout. */
long syscall(long number, ...) {
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    struct timespec real;
    struct timespec *until = (struct timespec *)a[3];
    int is_timed = number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && until;
    if (is_timed && is_hasty()) {
        set(&real, began + (nanoseconds(until) - began) / haste);
        a[3] = (long)&real;
    }
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
