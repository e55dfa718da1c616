/* A libcuda.so.1 with but one function. */

int cuInit(unsigned flags);

int cuInit(unsigned flags) {
  return (int)flags;
}
