#ifndef TANDEM_TANDEM_H
#define TANDEM_TANDEM_H

/* tandem: Mixture-of-Experts transformer layers with overlapped execution streams.
 *
 * A layer is a short straight-line program of operations, placed on lanes (a set of SMs and a stream; without a GPU a
 * thread), run eagerly or captured into a graph and replayed. This header includes everything; each part can be
 * included alone:
 *
 *   base.h        version, status, errors, dtypes          runtime.h     a device, its allocators, log and lanes
 *   buffer.h      memory and views                         program.h     steps, waits, workspace, launch
 *   graph.h       capture, replay, buckets                 ops.h         the operations a program is made of
 *   checkpoint.h  safetensors                              model.h       whole models, caches, sequences
 *   trace.h       what ran where and when                tuning.h      ways to run a step, and the fastest
 *
 * Ownership. Whoever creates destroys; destroy accepts NULL. Buffers and programs are reference-counted inside: a
 * program keeps the buffers it uses, a graph its program. A runtime outlives what was made from it, and says so
 * otherwise. Strings and arrays that are passed in are copied unless the comment says otherwise. Borrowed means: not
 * yours to destroy.
 *
 * Errors. A function that can fail answers a tdm_status, sets its out parameter to NULL first, and leaves everything
 * else as it was. tdm_last_error() then has one sentence with names and values. INVALID_* is the caller's bug,
 * UNSUPPORTED our limit. The library never prints, aborts or exits, and has no state outside its objects but each
 * thread's last error.
 *
 * Configs. A config struct starts with its size; x_config_init(&config, sizeof config) fills the defaults. A library
 * newer than the caller's header keeps working, since the size tells which fields exist.
 *
 * Threads. Each type's comment says what it allows. Different objects can always be used from different threads.
 *
 * Streams and graphs. Nothing is allocated, loaded or looked up after a program is sealed. What changes from step to
 * step (token count inside a bucket, positions, lengths, block tables) lives in device memory, so a replay needs no
 * update. On the host device a launch returns when it is done.
 *
 * Results. Deterministic: same input, same bits - serial or overlapped, eager or replayed, alone or in a batch. */

#include "tandem/base.h"
#include "tandem/buffer.h"
#include "tandem/checkpoint.h"
#include "tandem/graph.h"
#include "tandem/model.h"
#include "tandem/ops.h"
#include "tandem/program.h"
#include "tandem/runtime.h"
#include "tandem/trace.h"
#include "tandem/tuning.h"

#endif
