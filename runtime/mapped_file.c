#include "runtime/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static tdm_status map(int fd, const char* path, tdm_mapped_file* out_file) {
  struct stat info;
  if (fstat(fd, &info) != 0) return TDM_FAIL_RAW(TDM_IO, errno, "%s: fstat: %s", path, strerror(errno));
  if (S_ISDIR(info.st_mode)) return TDM_FAIL_RAW(TDM_IO, EISDIR, "%s is a directory, expected a file", path);
  if (!S_ISREG(info.st_mode)) return TDM_FAIL_RAW(TDM_IO, ENODEV, "%s is not a regular file", path);
  if (info.st_size == 0) return TDM_OK;
  size_t n_bytes = (size_t)info.st_size;
  void* bytes = mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  if (bytes == MAP_FAILED)
    return TDM_FAIL_RAW(TDM_IO, errno, "%s: mmap of %zu bytes: %s", path, n_bytes, strerror(errno));
  *out_file = (tdm_mapped_file){bytes, n_bytes};
  return TDM_OK;
}

tdm_status tdm_mapped_file_open(const char* path, tdm_mapped_file* out_file) {
  *out_file = (tdm_mapped_file){NULL, 0};
  /* O_NONBLOCK: opening a FIFO must not wait for a writer. */
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return TDM_FAIL_RAW(TDM_IO, errno, "%s: open: %s", path, strerror(errno));
  tdm_status status = map(fd, path, out_file);
  close(fd);
  return status;
}

void tdm_mapped_file_close(tdm_mapped_file* file) {
  /* munmap takes a plain void*, though the mapping is read-only. */
  if (file->bytes) munmap((void*)(uintptr_t)file->bytes, file->n_bytes);
  *file = (tdm_mapped_file){NULL, 0};
}

char* tdm_path_join(tdm_runtime* runtime, const char* directory, const char* name) {
  size_t directory_bytes = strlen(directory);
  size_t name_bytes = strlen(name);
  while (directory_bytes > 1 && directory[directory_bytes - 1] == '/') directory_bytes--;
  char* path = tdm_host_alloc(runtime, directory_bytes + 1 + name_bytes + 1);
  if (!path) return NULL;
  memcpy(path, directory, directory_bytes);
  path[directory_bytes] = '/';
  memcpy(path + directory_bytes + 1, name, name_bytes + 1);
  return path;
}
