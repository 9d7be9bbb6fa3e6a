/* The guest's end of socket tests: busybox knows nothing of AF_VSOCK. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[1 << 16];

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void put(int fd, const char *data, ssize_t size)
{
    while (size > 0) {
        ssize_t done = write(fd, data, size);
        if (done < 0)
            fail("write");
        data += done;
        size -= done;
    }
}

static struct sockaddr_vm address(unsigned cid, unsigned port)
{
    struct sockaddr_vm sa = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
    return sa;
}

static int dial(unsigned port)
{
    struct sockaddr_vm sa = address(VMADDR_CID_HOST, port);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof sa))
        fail("connect");
    return fd;
}

static int serve(unsigned port)
{
    struct sockaddr_vm sa = address(VMADDR_CID_ANY, port);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof sa) || listen(fd, 64))
        fail("listen");
    return fd;
}

/* Everything from fd comes back on it, until its end. */
static void echo(int fd)
{
    ssize_t size;
    while ((size = read(fd, buffer, sizeof buffer)) > 0)
        put(fd, buffer, size);
    close(fd);
}

/* Standard input goes to fd and its end too; what comes back goes to standard output.  Both at once. */
static void copy(int fd)
{
    pid_t sender = fork();
    ssize_t size;
    if (sender == 0) {
        while ((size = read(0, buffer, sizeof buffer)) > 0)
            put(fd, buffer, size);
        shutdown(fd, SHUT_WR);
        _exit(0);
    }
    while ((size = read(fd, buffer, sizeof buffer)) > 0)
        put(1, buffer, size);
    if (size < 0)
        fail("read");
}

int main(int argc, char **argv)
{
    unsigned port = argc > 2 ? strtoul(argv[2], NULL, 0) : 0;
    int count = argc > 3 ? atoi(argv[3]) : 1;
    signal(SIGPIPE, SIG_IGN);
    if (argc < 3)
        return 2;
    if (!strcmp(argv[1], "copy")) {
        copy(dial(port));
    } else if (!strcmp(argv[1], "echo")) {
        for (int fd = serve(port); count > 0; count--)
            echo(accept(fd, NULL, NULL));
    } else if (!strcmp(argv[1], "many")) {
        for (int n = 0; n < count; n++) {
            char text[16], back[16] = "";
            int fd = dial(port), size = snprintf(text, sizeof text, "%d", n);
            put(fd, text, size);
            shutdown(fd, SHUT_WR);
            if (read(fd, back, sizeof back) != size || strcmp(text, back))
                return 1;
            close(fd);
        }
        printf("%d connections\n", count);
    } else {
        return 2;
    }
    return 0;
}
