package cri

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// cdiAnnotation is what the names of annotations begin with that hold CDI devices,
// several with commas between them. It is the older way, and clients may go both.
const cdiAnnotation = "cdi.k8s.io/"

// cdiDevices is the devices of the field, then of the annotations by their names,
// each once.
func (d *decoder) cdiDevices(in []*v1.CDIDevice, annotations map[string]string) []string {
	var out []string
	add := func(field, name string) {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			d.reject(field, "%q must be a device's qualified name, such as vendor.com/class=name: %v", name, err)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for i, c := range in {
		add(at("config.CDI_devices", i)+".name", c.GetName())
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, cdiAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			add("config.annotations["+strconv.Quote(key)+"]", strings.TrimSpace(name))
		}
	}
	return out
}
