# Every target is one line onto `cargo xtask`; `cargo xtask help` says what each does. ARCH is x86_64 or aarch64; CPU is tcg, svm or vmx.
ARCH ?= x86_64
CPU ?= tcg
.PHONY: run test check book bench image build setup list clean help
run:    ; cargo xtask run --arch $(ARCH) --cpu $(CPU)
test:   ; cargo xtask test --arch $(ARCH) --cpu $(CPU) $(SCENARIO)
check:  ; cargo xtask check
book:   ; cargo xtask book
bench:  ; cargo xtask bench --arch $(ARCH)
image:  ; cargo xtask image --arch $(ARCH)
build:  ; cargo xtask build --arch $(ARCH)
setup:  ; cargo xtask setup --arch $(ARCH)
list:   ; cargo xtask list
clean:  ; cargo xtask clean
help:   ; cargo xtask help
