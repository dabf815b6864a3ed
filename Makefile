# Every target is one line onto `cargo xtask`; `cargo xtask help` says what each does.
.PHONY: run test check bench image build setup list clean help
run:    ; cargo xtask run
test:   ; cargo xtask test $(SCENARIO)
check:  ; cargo xtask check
bench:  ; cargo xtask bench
image:  ; cargo xtask image
build:  ; cargo xtask build
setup:  ; cargo xtask setup
list:   ; cargo xtask list
clean:  ; cargo xtask clean
help:   ; cargo xtask help
