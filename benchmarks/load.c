// The client of the benchmark: opens connections, sends the same first bytes on each, counts what comes back.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256, MAX_FDS = 1 << 20, STALL_MS = 10000, HOLD_AT_ONCE = 64 };

static const char USAGE[] =
    "usage: load run  ADDRESS PORT HELLO WANT AT_ONCE TOTAL SECONDS\n"
    "       load hold ADDRESS PORT HELLO WANT TOTAL\n"
    "\n"
    "Every connection sends the content of the file HELLO and must receive WANT bytes or more to count as good:\n"
    "a proxy that refuses quickly is not a fast one.\n"
    "\n"
    "run   keeps AT_ONCE connections open, each read to its end, until TOTAL were opened or SECONDS have passed\n"
    "      (0: no such limit); then prints {\"good\", \"failed\", \"bytes\", \"seconds\"}.\n"
    "hold  opens TOTAL connections and leaves them open; prints {\"standing\"} when each has received WANT bytes or\n"
    "      failed, and once more when standard input (a pipe) ends: how many stand at that moment.\n"
    "Nothing arriving for 10 seconds ends the wait; what is unfinished then has failed.\n";

struct connection {
    long received;
    bool hello_sent;
    bool standing;
};

static struct connection *connections;  // by file descriptor
static rlim_t max_fds;
static int poller;
static struct sockaddr_in target;
static char hello[64 * 1024];
static ssize_t hello_length;
static char buffer[1 << 20];
static bool hold;
static long want;

static long started;
static long pending;   // opened, and neither good, failed nor standing yet
static long good;
static long failed;
static long standing;
static long long bytes;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void watch(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0) die("load: epoll_ctl");
}

static void open_connection(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) die("load: socket");
    if ((rlim_t)fd >= max_fds) {
        fprintf(stderr, "load: more connections than the table holds\n");
        exit(1);
    }
    started++;
    if (connect(fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS) {
        failed++;
        close(fd);
        return;
    }
    connections[fd] = (struct connection){0};
    pending++;
    watch(EPOLL_CTL_ADD, fd, EPOLLOUT | EPOLLIN);
}

static void close_connection(int fd, bool is_good) {
    if (connections[fd].standing) {
        standing--;
        failed++;
    } else {
        pending--;
        if (is_good)
            good++;
        else
            failed++;
    }
    close(fd);
}

static void on_event(int fd, uint32_t events) {
    struct connection *connection = &connections[fd];
    if (!connection->hello_sent && (events & EPOLLOUT)) {
        if (send(fd, hello, hello_length, MSG_NOSIGNAL) != hello_length) {
            close_connection(fd, false);
            return;
        }
        connection->hello_sent = true;
        watch(EPOLL_CTL_MOD, fd, EPOLLIN);
        return;
    }
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t got = recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close_connection(fd, got == 0 && !hold && connection->received >= want);
        return;
    }
    bytes += got;
    connection->received += got;
    if (hold && !connection->standing && connection->received >= want) {
        connection->standing = true;
        standing++;
        pending--;
    }
}

// Returns false when nothing happened for STALL_MS, or when standard input (watched by hold alone) ended.
static bool step(int timeout_ms) {
    struct epoll_event events[BATCH];
    int count = epoll_wait(poller, events, BATCH, timeout_ms);
    if (count < 0 && errno != EINTR) die("load: epoll_wait");
    if (count == 0) return false;
    for (int i = 0; i < count; i++) {
        if (events[i].data.fd == STDIN_FILENO) return false;
        on_event(events[i].data.fd, events[i].events);
    }
    return true;
}

static void run(long at_once, long total, double seconds) {
    double begin = now();
    for (;;) {
        while (pending < at_once && (!total || started < total) && (seconds <= 0 || now() - begin < seconds))
            open_connection();
        if (pending == 0) break;
        if (!step(STALL_MS)) break;
    }
    double elapsed = now() - begin;
    printf("{\"good\": %ld, \"failed\": %ld, \"bytes\": %lld, \"seconds\": %.6f}\n",
           good, failed + pending, bytes, elapsed);
}

static void stand(long total) {
    for (;;) {
        while (pending < HOLD_AT_ONCE && started < total) open_connection();
        if (pending == 0) break;
        if (!step(STALL_MS)) break;
    }
    printf("{\"standing\": %ld}\n", standing);
    fflush(stdout);
    watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
    while (step(-1)) continue;
    // Closes that arrived in the same batch as the end of the input are still to be counted.
    epoll_ctl(poller, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
    while (step(0)) continue;
    printf("{\"standing\": %ld}\n", standing);
}

static void read_hello(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) die(path);
    hello_length = read(fd, hello, sizeof hello);
    if (hello_length <= 0) die(path);
    close(fd);
}

int main(int argc, char **argv) {
    hold = argc == 7 && strcmp(argv[1], "hold") == 0;
    if (!hold && !(argc == 9 && strcmp(argv[1], "run") == 0)) {
        fputs(USAGE, stderr);
        return 2;
    }
    target.sin_family = AF_INET;
    target.sin_port = htons(atoi(argv[3]));
    if (inet_pton(AF_INET, argv[2], &target.sin_addr) != 1) {
        fprintf(stderr, "load: %s is not an IPv4 address\n", argv[2]);
        return 2;
    }
    read_hello(argv[4]);
    want = atol(argv[5]);

    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) die("load: getrlimit");
    max_fds = limit.rlim_cur < MAX_FDS ? limit.rlim_cur : MAX_FDS;
    connections = calloc(max_fds, sizeof *connections);
    if (!connections) die("load: calloc");
    poller = epoll_create1(0);
    if (poller < 0) die("load: epoll_create1");

    if (hold)
        stand(atol(argv[6]));
    else
        run(atol(argv[6]), atol(argv[7]), atof(argv[8]));
    return 0;
}
