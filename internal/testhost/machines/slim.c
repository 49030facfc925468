/*
 * The slim machine: a small server, built with -g, that is all there is in its container. It is process
 * 1 there. Debugging it takes tools that it does not have.
 *
 * It listens on 127.0.0.1:8080, and then waits for work that never comes.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct server {
	const char *name;
	int listener;
	unsigned long requests;
};

static volatile sig_atomic_t stop;

static void on_sigterm(int signo)
{
	(void)signo;
	stop = 1;
}

static int open_listener(unsigned short port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0) {
		perror("slim: listen");
		exit(1);
	}
	return fd;
}

/* Sleeps in sigsuspend, so that a SIGTERM cannot come between looking at stop and going to sleep. */
static void wait_for_work(struct server *server, const sigset_t *awake)
{
	while (!stop)
		sigsuspend(awake);
	(void)server;
}

static void serve(struct server *server)
{
	struct sigaction action = { .sa_handler = on_sigterm };
	sigset_t term, awake;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	sigprocmask(SIG_BLOCK, &term, &awake);
	/* The kernel drops signals for a process 1 that has no handler for them. */
	sigaction(SIGTERM, &action, NULL);

	wait_for_work(server, &awake);
}

int main(void)
{
	struct server server = { .name = "slim", .listener = open_listener(8080) };

	printf("%s: listening on 127.0.0.1:8080\n", server.name);
	fflush(stdout);
	serve(&server);
	return 0;
}
