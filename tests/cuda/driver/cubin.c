#include "tests/cuda/driver/cubin.h"

#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
  MACHINE_CUDA = 190,
  SYMBOL_ENTRY = 0x10, /* st_other of a kernel */
  /* .nv.info.<kernel> is a list of (format, attribute, 16-bit value), with `value` bytes after it in the sized format
   */
  FORMAT_SIZED = 4,
  ATTRIBUTE_MAX_THREADS = 0x05,
  ATTRIBUTE_PARAM = 0x17 /* index, ordinal and offset, size from bit 18 on */
};

typedef struct elf {
  const uint8_t* bytes;
  const Elf64_Ehdr* header;
  const Elf64_Shdr* sections;
} elf;

static const char* section_name(const elf* image, const Elf64_Shdr* section) {
  return (const char*)image->bytes + image->sections[image->header->e_shstrndx].sh_offset + section->sh_name;
}

static const Elf64_Shdr* find_section(const elf* image, const char* prefix, const char* name) {
  char wanted[256];
  snprintf(wanted, sizeof wanted, "%s%s", prefix, name);
  for (int i = 0; i < image->header->e_shnum; i++)
    if (strcmp(section_name(image, &image->sections[i]), wanted) == 0) return &image->sections[i];
  return NULL;
}

static void read_attributes(const elf* image, fake_entry* entry) {
  const Elf64_Shdr* section = find_section(image, ".nv.info.", entry->name);
  const uint8_t* at = section ? image->bytes + section->sh_offset : NULL;
  const uint8_t* end = section ? at + section->sh_size : NULL;
  while (at && at + 4 <= end) {
    uint16_t value;
    memcpy(&value, at + 2, sizeof value);
    if (at[1] == ATTRIBUTE_PARAM && at[0] == FORMAT_SIZED) {
      uint32_t words[3];
      memcpy(words, at + 4, sizeof words);
      entry->params_bytes += words[2] >> 18;
      entry->n_params++;
    }
    if (at[1] == ATTRIBUTE_MAX_THREADS && at[0] == FORMAT_SIZED) {
      uint32_t threads[3];
      memcpy(threads, at + 4, sizeof threads);
      entry->most_threads = threads[0] * threads[1] * threads[2];
    }
    at += 4 + (at[0] == FORMAT_SIZED ? value : 0);
  }
}

int fake_cubin_entries(const void* data, fake_entry* entries, int capacity) {
  elf image = {.bytes = data, .header = data};
  if (memcmp(data, ELFMAG, SELFMAG) != 0 || image.header->e_machine != MACHINE_CUDA) return -1;
  image.sections = (const Elf64_Shdr*)(const void*)(image.bytes + image.header->e_shoff);
  const Elf64_Shdr* table = find_section(&image, ".symtab", "");
  if (!table) return -1;
  const Elf64_Sym* symbols = (const Elf64_Sym*)(const void*)(image.bytes + table->sh_offset);
  const char* names = (const char*)image.bytes + image.sections[table->sh_link].sh_offset;
  int n = 0;
  for (size_t i = 0; i < table->sh_size / sizeof *symbols; i++) {
    if (ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC || !(symbols[i].st_other & SYMBOL_ENTRY)) continue;
    if (n < capacity) {
      fake_entry* entry = &entries[n];
      *entry = (fake_entry){.name = names + symbols[i].st_name};
      const Elf64_Shdr* shared = find_section(&image, ".nv.shared.", entry->name);
      if (shared) entry->fixed_shared_bytes = (unsigned)shared->sh_size;
      read_attributes(&image, entry);
    }
    n++;
  }
  return n;
}
