// Stand-in.
#define PAGE_SIZE 4096
