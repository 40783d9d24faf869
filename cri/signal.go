package cri

import (
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signalName is the name of a CRI signal as the rest of crid writes it:
// "SIGTERM", "SIGRTMIN+3", and "" for the runtime's default. The numbers of
// the enum are alphabetical and have nothing to do with the kernel's.
func signalName(s v1.Signal) (name string, ok bool) {
	if s == v1.Signal_SIGNAL_RUNTIME_DEFAULT {
		return "", true
	}
	name, ok = v1.Signal_name[int32(s)]
	name = strings.TrimPrefix(name, "SIGNAL_")
	name = strings.Replace(name, "RTMINPLUS", "RTMIN+", 1)
	name = strings.Replace(name, "RTMAXMINUS", "RTMAX-", 1)
	return name, ok
}

// signalValue is the CRI signal of a name. What CRI has no value for, such as
// a number that an image gave, is the runtime's default.
func signalValue(name string) v1.Signal {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	name = strings.Replace(name, "RTMIN+", "RTMINPLUS", 1)
	name = strings.Replace(name, "RTMAX-", "RTMAXMINUS", 1)
	return v1.Signal(v1.Signal_value["SIGNAL_"+name])
}
