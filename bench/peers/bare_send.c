/* The physical limit: what is posted goes to every subscriber with a bare send() in a loop.
 *
 * No channels, no history, no limits and no care: the frame is built once and each socket gets one
 * system call. It waits for a socket that is full, which no server may do. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_SOCKETS 65536
#define MOST_REQUEST 65536
#define EVENTS 256

/* Sec-WebSocket-Accept for the sample key of RFC 6455, which every client of the load sends. */
static const char UPGRADED[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

struct input {
    size_t size;
    char data[MOST_REQUEST];
};

static struct input *inputs[MOST_SOCKETS];
static int subscribers[MOST_SOCKETS];
static int place_of[MOST_SOCKETS];
static int count;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int send_all(int fd, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) return -1;
            struct pollfd full = {.fd = fd, .events = POLLOUT};
            poll(&full, 1, -1);
            continue;
        }
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static void broadcast(const char *body, size_t size) {
    static char frame[MOST_REQUEST + 4];
    size_t head = 2;
    frame[0] = (char)0x81;
    if (size < 126) {
        frame[1] = (char)size;
    } else {
        frame[1] = 126;
        frame[2] = (char)(size >> 8);
        frame[3] = (char)size;
        head = 4;
    }
    memcpy(frame + head, body, size);
    for (int i = 0; i < count; i++) send_all(subscribers[i], frame, head + size);
}

static void leave(int fd) {
    if (place_of[fd] > 0) {
        int last = subscribers[--count];
        subscribers[place_of[fd] - 1] = last;
        place_of[last] = place_of[fd];
        place_of[fd] = 0;
    }
    free(inputs[fd]);
    inputs[fd] = NULL;
    close(fd);
}

/* Answer the whole requests that are there; -1 if the connection is to end. */
static int answer(int fd) {
    struct input *in = inputs[fd];
    in->data[in->size] = 0;
    char *at = in->data, *end;
    while ((end = strstr(at, "\r\n\r\n")) != NULL) {
        char *body = end + 4;
        size_t length = 0;
        char *found = strcasestr(at, "content-length:");
        if (found != NULL && found < end) length = strtoul(found + 15, NULL, 10);
        if (length > (size_t)(in->data + in->size - body)) break;
        if (strncmp(at, "GET ", 4) == 0) {
            if (send_all(fd, UPGRADED, sizeof UPGRADED - 1) < 0) return -1;
            if (place_of[fd] == 0) {
                subscribers[count++] = fd;
                place_of[fd] = count;
            }
        } else {
            broadcast(body, length);
            if (send_all(fd, ANSWER, sizeof ANSWER - 1) < 0) return -1;
        }
        at = body + length;
    }
    in->size -= (size_t)(at - in->data);
    memmove(in->data, at, in->size);
    return 0;
}

static void read_from(int fd) {
    struct input *in = inputs[fd];
    /* A subscriber has nothing more to say. */
    if (place_of[fd] > 0) in->size = 0;
    ssize_t got = recv(fd, in->data + in->size, MOST_REQUEST - 1 - in->size, 0);
    if (got <= 0) {
        leave(fd);
        return;
    }
    in->size += (size_t)got;
    if (place_of[fd] == 0 && answer(fd) < 0) leave(fd);
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int on = 1, listening = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listening, (struct sockaddr *)&address, size) < 0) fail("bind");
    if (listen(listening, 4096) < 0) fail("listen");
    getsockname(listening, (struct sockaddr *)&address, &size);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, ready[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listening, &event);
    printf("listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int number = epoll_wait(poller, ready, EVENTS, -1);
        if (number < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < number; i++) {
            int fd = ready[i].data.fd;
            if (fd != listening) {
                read_from(fd);
                continue;
            }
            fd = accept(listening, NULL, NULL);
            if (fd < 0) continue;
            if (fd >= MOST_SOCKETS || (inputs[fd] = malloc(sizeof(struct input))) == NULL) {
                close(fd);
                continue;
            }
            inputs[fd]->size = 0;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            event.data.fd = fd;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
