# Virtual functions made, listed and taken away: of Linux's igb, then of vfio-pci, with a VF token that is made and told, and refused where it is wrong.
# guests: x86_64
# machine: --nic igb --bind none
card=$WHOLEBAR_NIC
fail() { echo "FAIL: $*"; cat /tmp/out; exit 1; }
works() { "$@" >/tmp/out 2>&1 || fail "$* does not work"; cat /tmp/out; }
says() { grep -qF -- "$1" /tmp/out || fail "it does not say: $1"; }
refused() { # exit code, text, words of the command
	local code=$1 text=$2; shift 2
	"$@" >/tmp/out 2>&1 </dev/null; [ $? = $code ] || fail "$* does not end with $code"
	says "$text"
}
driver() { basename "$(readlink /sys/bus/pci/devices/$1/driver)" 2>/dev/null; }
has() { [ "$(driver $2)" = $1 ] || fail "$2 is with $(driver $2), not with $1"; }
nth() { basename "$(readlink /sys/bus/pci/devices/$card/virtfn$1)"; }
count() { cat /sys/bus/pci/devices/$card/sriov_numvfs; }

works wholebar vf list
says "$card"
refused 1 "no driver has it" wholebar vf create $card 2
refused 1 "can have no virtual functions" wholebar vf create $WHOLEBAR_NVME 2
refused 2 "0 is not in" wholebar vf create $card 0

# Linux's own driver makes them, and its driver for them takes them, or nobody, or vfio-pci.
modprobe igb && modprobe igbvf || exit 1
works wholebar vf create $card 2
[ "$(count)" = 2 ] || fail "there are $(count)"
says "2 of 7 virtual functions; igb has it; each of them has BAR0 of 16 KiB,"
refused 1 "has 2 virtual functions already" wholebar vf create $card 3
refused 1 "is itself a virtual function" wholebar vf create $(nth 0) 1
refused 1 "2 virtual functions, which would go" wholebar bind $card
works wholebar vf destroy $card
[ "$(count)" = 0 ] || fail "there are $(count)"
works wholebar vf create $card 1 --no-probe
[ "$(driver $(nth 0))" = . ] || [ -z "$(driver $(nth 0))" ] || fail "$(driver $(nth 0)) took it"
works wholebar vf destroy $card
works wholebar vf create $card 2 --bind
one=$(nth 0) two=$(nth 1)
has vfio-pci $one
has vfio-pci $two
works wholebar doctor $one --json
says "a virtual function of $card, which igb has and serves it: it needs no VF token"
refused 1 "refuses a VF token" wholebar doctor --json $one,token=2ab74924-c335-45f4-9b16-8569e5b08258
works wholebar barmap $one
works wholebar vf destroy $card --json
says "\"$two\""

# vfio-pci makes them: it has to be allowed to, and there is a token.
works wholebar bind $card
[ "$(cat /sys/module/vfio_pci/parameters/enable_sriov)" = N ] || fail "it is allowed to already"
works wholebar vf create $card 2
says "echo Y > /sys/module/vfio_pci/parameters/enable_sriov"
has vfio-pci $one
named=$(grep -o "$one,token=[-0-9a-f]*" /tmp/out) || fail "it tells no token"
refused 1 "opens with that one's VF token only" wholebar doctor $one --json
says "name it $named"
works wholebar doctor $named
says "opened"
works wholebar vf list $two
says "${named#*,}"
refused 1 "share a VF token" wholebar msix $one
refused 1 "share a VF token" wholebar msix $one,token=00000000-0000-0000-0000-000000000000
works wholebar msix $named
works wholebar barmap $card
# Who has one open keeps it; told to, it lets go.
wholebar net dump $card /dev/null & holder=$!
for try in $(seq 1000); do
	wholebar doctor $card --json 2>/dev/null | grep -q "has it, or its IOMMU group, open" && break
	sleep 0.1
done
works wholebar doctor $named
kill -INT $holder; wait $holder
works wholebar vf destroy $card
[ "$(count)" = 0 ] || fail "there are $(count)"
# One of one's own.
works wholebar vf create $card 1 --token 2ab74924-c335-45f4-9b16-8569e5b08258 --json
says '"opens_as": "'$one',token=2ab74924-c335-45f4-9b16-8569e5b08258"'
works wholebar vf destroy $card
works wholebar unbind $card
