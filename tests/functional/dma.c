/* Moves data between a mapped file and a disk past every cache: the disk's device reads and writes the mapped
 * memory itself.   dma out|in MAPPED DISK BYTES */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int out = !strcmp(argv[1], "out");
	long size = atol(argv[4]);
	int file = open(argv[2], O_RDWR), disk = open(argv[3], O_RDWR | O_DIRECT);
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

	if (argc != 5 || file < 0 || disk < 0 || memory == MAP_FAILED) {
		perror("dma: open or mmap");
		return 1;
	}
	if ((out ? pwrite(disk, memory, size, 0) : pread(disk, memory, size, 0)) != size) {
		perror("dma: transfer");
		return 1;
	}
	return msync(memory, size, MS_SYNC) != 0;
}
