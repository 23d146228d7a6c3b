/* A disk that forgets what was not synced, for LD_PRELOAD.
 *
 * Files whose path starts with $POWERLESS_PREFIX (and does not end in -shm, which no power failure
 * keeps) get an undo journal beside them: PATH.undo. Before a write the old bytes go into it; a sync
 * that succeeds empties it. After kill -9, forget_unsynced() of tests/faults/powerless.py plays the
 * journal back, newest first: what is left is what a disk holds that kept nothing but synced writes.
 *
 * $POWERLESS_FAULTS names a file. While it holds "fsync", syncs fail with EIO and the journal stays;
 * "full": no file may grow; "readonly": nothing may be written or opened for writing; "clock N": the
 * wall clock is N seconds off. $POWERLESS_SYNC_US makes a sync take that long, as on slow disks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 4096
struct record { int64_t offset, length, old_length, old_size; };

static int undo_of[MAX_FD]; /* 0: not followed; otherwise the journal's descriptor */
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

static int fault(const char *word, long *value) {
    const char *path = getenv("POWERLESS_FAULTS");
    char text[64] = "";
    if (!path) return 0;
    int fd = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    REAL(close)(fd);
    if (got <= 0 || strncmp(text, word, strlen(word)) != 0) return 0;
    if (value) *value = atol(text + strlen(word));
    return 1;
}

static int ours(const char *path) {
    const char *prefix = getenv("POWERLESS_PREFIX");
    return prefix && strncmp(path, prefix, strlen(prefix)) == 0;
}

static void follow(int fd, const char *path) {
    size_t length = strlen(path);
    char undo[4096];
    if (fd < 0 || fd >= MAX_FD || !ours(path)) return;
    if (length > 4 && (!strcmp(path + length - 4, "-shm") || !strcmp(path + length - 5, ".lock"))) return;
    snprintf(undo, sizeof undo, "%s.undo", path);
    undo_of[fd] = REAL(open)(undo, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static void remember(int fd, int64_t offset, int64_t length) {
    struct stat now;
    fstat(fd, &now);
    int64_t old = now.st_size > offset ? now.st_size - offset : 0;
    if (old > length) old = length;
    size_t total = sizeof(struct record) + (size_t)old;
    char *data = malloc(total);
    struct record head = {offset, length, old, now.st_size};
    memcpy(data, &head, sizeof head);
    if (old && pread(fd, data + sizeof head, (size_t)old, offset) != old) abort();
    if (REAL(write)(undo_of[fd], data, total) != (ssize_t)total) abort();
    free(data);
}

static void enter(int fd) { pthread_mutex_lock(&alone); flock(undo_of[fd], LOCK_EX); }
static void leave(int fd) { flock(undo_of[fd], LOCK_UN); pthread_mutex_unlock(&alone); }
static int followed(int fd) { return fd >= 0 && fd < MAX_FD && undo_of[fd] > 0; }

static int refused(int fd, int64_t end) {
    struct stat now;
    if (fault("readonly", NULL)) { errno = EROFS; return 1; }
    if (fault("full", NULL) && fstat(fd, &now) == 0 && end > now.st_size) { errno = ENOSPC; return 1; }
    return 0;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && ours(path) && fault("readonly", NULL)) { errno = EACCES; return -1; } \
    int fd = REAL(name)(path, flags, mode); follow(fd, path); return fd; }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (followed(fd)) { int undo = undo_of[fd]; undo_of[fd] = 0; REAL(close)(undo); }
    return REAL(close)(fd);
}

#define PWRITE(name, offset_type) ssize_t name(int fd, const void *data, size_t length, offset_type offset) { \
    if (!followed(fd)) return REAL(name)(fd, data, length, offset); \
    if (refused(fd, offset + (int64_t)length)) return -1; \
    enter(fd); remember(fd, offset, (int64_t)length); \
    ssize_t done = REAL(name)(fd, data, length, offset); leave(fd); return done; }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t length) {
    if (!followed(fd)) return REAL(write)(fd, data, length);
    enter(fd); remember(fd, lseek(fd, 0, SEEK_CUR), (int64_t)length);
    ssize_t done = REAL(write)(fd, data, length); leave(fd); return done;
}

#define TRUNCATE(name, size_type) int name(int fd, size_type size) { \
    if (!followed(fd)) return REAL(name)(fd, size); \
    struct stat now; enter(fd); fstat(fd, &now); \
    remember(fd, size, now.st_size > size ? now.st_size - size : 0); \
    int done = REAL(name)(fd, size); leave(fd); return done; }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name) int name(int fd) { \
    if (!followed(fd)) return REAL(name)(fd); \
    if (fault("fsync", NULL)) { errno = EIO; return -1; } \
    const char *slow = getenv("POWERLESS_SYNC_US"); if (slow) usleep((useconds_t)atol(slow)); \
    enter(fd); REAL(ftruncate)(undo_of[fd], 0); leave(fd); return 0; }
SYNC(fsync)
SYNC(fdatasync)

int clock_gettime(clockid_t clock, struct timespec *now) {
    long off = 0;
    int done = REAL(clock_gettime)(clock, now);
    if (clock == CLOCK_REALTIME && fault("clock", &off)) now->tv_sec += off;
    return done;
}
