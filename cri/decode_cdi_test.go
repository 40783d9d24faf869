package cri

import (
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestCDIDevices(t *testing.T) {
	for _, tt := range []struct {
		name        string
		field       []string
		annotations map[string]string
		want        []string
		wrong       string // the field that is
	}{
		{name: "none", annotations: map[string]string{"note": "a.com/b=c"}},
		{name: "field", field: []string{"a.com/b=c", "a.com/b=d"}, want: []string{"a.com/b=c", "a.com/b=d"}},
		{
			name: "annotations", annotations: map[string]string{"cdi.k8s.io/z": "a.com/b=z", "cdi.k8s.io/y": "a.com/b=y, a.com/b=x"},
			want: []string{"a.com/b=y", "a.com/b=x", "a.com/b=z"},
		},
		{
			name: "both, once each", field: []string{"a.com/b=c", "a.com/b=c"}, annotations: map[string]string{"cdi.k8s.io/p": "a.com/b=d,a.com/b=c"},
			want: []string{"a.com/b=c", "a.com/b=d"},
		},
		{name: "no qualified name", field: []string{"a.com/b=c", "gpu0"}, wrong: "config.CDI_devices[1].name: "},
		{name: "empty", field: []string{""}, wrong: "config.CDI_devices[0].name: "},
		{name: "annotation", annotations: map[string]string{"cdi.k8s.io/p": "gpu0"}, wrong: `config.annotations["cdi.k8s.io/p"]: `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var in []*v1.CDIDevice
			for _, name := range tt.field {
				in = append(in, &v1.CDIDevice{Name: name})
			}
			var d decoder
			got := d.cdiDevices(in, tt.annotations)
			if err := d.err(); (tt.wrong == "") != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), tt.wrong) {
				t.Fatalf("cdiDevices = %v, want an error about %q", err, tt.wrong)
			}
			if tt.wrong == "" && !slices.Equal(got, tt.want) {
				t.Errorf("cdiDevices = %q, want %q", got, tt.want)
			}
		})
	}
}
