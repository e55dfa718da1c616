#ifndef RUNTIME_MAPPED_FILE_H
#define RUNTIME_MAPPED_FILE_H

/* A whole file, mapped read-only. */

#include "runtime/runtime.h"

typedef struct tdm_mapped_file {
  const char* bytes; /* NULL when the file is empty */
  size_t n_bytes;
} tdm_mapped_file;

/* Maps the regular file at `path`; whatever else has that name (a directory, a FIFO, a device) is refused without being
 * waited for. IO with errno in raw_code; the sentence starts with the path. */
tdm_status tdm_mapped_file_open(const char* path, tdm_mapped_file* out_file);
/* Unmaps and empties `file`; may be called again. */
void tdm_mapped_file_close(tdm_mapped_file* file);

/* "directory/name"; free it with tdm_host_free(runtime, path, strlen(path) + 1). NULL, with the error recorded, when
 * there is no memory. */
char* tdm_path_join(tdm_runtime* runtime, const char* directory, const char* name);

#endif
