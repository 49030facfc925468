/*
 * Preloaded into cntr 1.6.0, which could not be compared on today's hosts without it.
 *
 * It wants to raise the limit on open files to a million, and gives up where it may not. And it answers the request
 * CREATE with the flags that open(2) was called with, where answers have flags of their own: O_EXCL is the bit that
 * since Linux 6.9 means FOPEN_PASSTHROUGH, so each open(2) that must create a file fails with EIO. That bit is taken
 * out of its answers, and nothing else: older kernels did not look at it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>

int setrlimit(int resource, const void *limit) { return 0; }
int setrlimit64(int resource, const void *limit) { return 0; }
int prlimit64(int pid, int resource, const void *limit, void *old)
{
	static int (*real)(int, int, const void *, void *);
	if (!real)
		real = dlsym(RTLD_NEXT, "prlimit64");
	return real(pid, resource, 0, old);
}

/* The request that this thread is at work on. */
static __thread struct fuse_in_header request;

ssize_t read(int fd, void *buf, size_t size)
{
	static ssize_t (*real)(int, void *, size_t);
	if (!real)
		real = dlsym(RTLD_NEXT, "read");
	ssize_t n = real(fd, buf, size);
	const struct fuse_in_header *header = buf;
	if (n >= (ssize_t)sizeof *header && header->len == n)
		request = *header;
	return n;
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
	static ssize_t (*real)(int, const struct iovec *, int);
	if (!real)
		real = dlsym(RTLD_NEXT, "writev");
	struct created {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	};
	if (count == 2 && iov[0].iov_len == sizeof(struct fuse_out_header) && iov[1].iov_len == sizeof(struct created)) {
		const struct fuse_out_header *header = iov[0].iov_base;
		struct created *created = iov[1].iov_base;
		if (request.opcode == FUSE_CREATE && header->unique == request.unique)
			created->open.open_flags &= ~FOPEN_PASSTHROUGH;
	}
	return real(fd, iov, count);
}
