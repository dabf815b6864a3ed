# Every target is one line onto `cargo xtask`; `cargo xtask help` says what each does.
.PHONY: build run test check bench image clean help
build:  ; cargo xtask build
run:    ; cargo xtask run
test:   ; cargo xtask test $(SCENARIO)
check:  ; cargo xtask check
bench:  ; cargo xtask bench
image:  ; cargo xtask image
clean:  ; cargo xtask clean
help:   ; cargo xtask help
