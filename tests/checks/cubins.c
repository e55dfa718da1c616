/* Prints the embedded kernel files, one "name bytes" a line; exit status 1 when one is no CUDA ELF image. */

#include "runtime/cubins.h"
#include <elf.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MACHINE_CUDA = 190 };

int main(void) {
  int wrong = 0;
  for (int i = 0; i < tdm_cubin_count; i++) {
    const tdm_cubin* cubin = &tdm_cubins[i];
    Elf64_Ehdr header = {0};
    if (cubin->bytes >= sizeof header) memcpy(&header, cubin->data, sizeof header);
    bool image = memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_machine == MACHINE_CUDA;
    bool aligned = (uintptr_t)cubin->data % 64 == 0;
    printf("%s %zu%s%s\n", cubin->name, cubin->bytes, image ? "" : " is no CUDA image",
           aligned ? "" : " is misaligned");
    wrong += !image || !aligned;
  }
  return wrong != 0;
}
