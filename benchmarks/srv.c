// The server of the benchmark: after the first bytes of a connection it answers a fixed number of bytes.
// The answer begins like a TLS 1.3 server's (a ServerHello, then one application data record), and the rest is zeros:
// no TLS is computed, so that the proxy in front of it is what is measured.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 256 * 1024, BATCH = 256, MAX_FDS = 1 << 20 };

struct connection {
    long sent;
    bool answering;
};

// The head of the answer, RFC 8446 section 4.1.3: record header, ServerHello (32 bytes of random, empty session id,
// TLS_AES_128_GCM_SHA256, supported_versions = 1.3), then the header of an application data record of 16 kB.
static const unsigned char HEAD[] = {
    0x16, 0x03, 0x03, 0x00, 0x32, 0x02, 0x00, 0x00, 0x2e, 0x03, 0x03,
    0x5a, 0x31, 0x0c, 0x77, 0x9e, 0x42, 0xd8, 0x16, 0x63, 0x0b, 0xf1, 0x8d, 0x24, 0x9a, 0x75, 0xce,
    0x38, 0xe7, 0x51, 0x06, 0xbc, 0x4f, 0x92, 0x2d, 0xa3, 0x68, 0x1e, 0xf5, 0x80, 0x3b, 0xc9, 0x47,
    0x00, 0x13, 0x01, 0x00, 0x00, 0x06, 0x00, 0x2b, 0x00, 0x02, 0x03, 0x04,
    0x17, 0x03, 0x03, 0x40, 0x00,
};

static unsigned char answer[2 * CHUNK];  // the first half begins with HEAD, the second is sent again and again
static unsigned char received[CHUNK];
static struct connection *connections;  // by file descriptor
static rlim_t max_fds;
static int poller;
static long answer_bytes;
static bool hold;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0) die("srv: epoll_ctl");
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) die("srv: socket");
    int on = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) die("srv: SO_REUSEADDR");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("srv: bind");
    if (listen(fd, 4096) < 0) die("srv: listen");
    return fd;
}

// At most BATCH at a time: the connections that already stand are served in between.
static void accept_some(int listener) {
    for (int i = 0; i < BATCH; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) {
            if (errno == EAGAIN) return;
            if (errno == ECONNABORTED || errno == EINTR) continue;
            die("srv: accept");
        }
        if ((rlim_t)fd >= max_fds) {
            fprintf(stderr, "srv: more connections than the table holds\n");
            exit(1);
        }
        connections[fd] = (struct connection){0};
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

// Returns false when the connection is over.
static bool send_answer(int fd) {
    struct connection *connection = &connections[fd];
    while (connection->sent < answer_bytes) {
        long offset = connection->sent < CHUNK ? connection->sent : CHUNK;
        long left = answer_bytes - connection->sent;
        ssize_t sent = send(fd, answer + offset, left < CHUNK ? left : CHUNK, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return false;
            watch(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT);
            return true;
        }
        connection->sent += sent;
    }
    if (!hold) return false;
    watch(EPOLL_CTL_MOD, fd, EPOLLIN);
    return true;
}

// Returns false when the connection is over.
static bool serve(int fd, uint32_t events) {
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        ssize_t got = recv(fd, received, sizeof received, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN)) return false;
        if (got > 0) connections[fd].answering = true;
    }
    return !connections[fd].answering || send_answer(fd);
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4 || (argc == 4 && strcmp(argv[3], "hold") != 0)) {
        fprintf(stderr, "usage: srv PORT BYTES [hold]\n"
                        "Answers the first bytes of every connection with BYTES bytes, then closes it;\n"
                        "with `hold`, leaves it open until the other side closes.\n"
                        "Prints `ready` when it listens.\n");
        return 2;
    }
    answer_bytes = atol(argv[2]);
    hold = argc == 4;
    memcpy(answer, HEAD, sizeof HEAD);

    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) die("srv: getrlimit");
    max_fds = limit.rlim_cur < MAX_FDS ? limit.rlim_cur : MAX_FDS;
    connections = calloc(max_fds, sizeof *connections);
    if (!connections) die("srv: calloc");

    poller = epoll_create1(0);
    if (poller < 0) die("srv: epoll_create1");
    int listener = listen_on(atoi(argv[1]));
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    puts("ready");
    fflush(stdout);

    struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(poller, events, BATCH, -1);
        if (count < 0 && errno != EINTR) die("srv: epoll_wait");
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_some(listener);
            else if (!serve(fd, events[i].events))
                close(fd);
        }
    }
}
