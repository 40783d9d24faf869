package cri

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
)

// FuzzDecode: whatever arrives as a request, decoding does not panic, refuses
// with Invalid only, and what it lets through keeps the promises that the rest
// of crid builds on.
func FuzzDecode(f *testing.F) {
	for _, path := range requests(f, "run-*.json") {
		var r v1.RunPodSandboxRequest
		readRequest(f, path, &r)
		seed(f, &r)
	}
	for _, path := range requests(f, "create-*.json") {
		var r v1.CreateContainerRequest
		readRequest(f, path, &r)
		seed(f, &r)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, systemd := range []bool{false, true} {
			fuzzSandbox(t, data, systemd)
		}
		fuzzContainer(t, data)
		fuzzOthers(t, data)
	})
}

func seed(f *testing.F, m proto.Message) {
	data, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
}

func fuzzSandbox(t *testing.T, data []byte, systemd bool) {
	var r v1.RunPodSandboxRequest
	if proto.Unmarshal(data, &r) != nil {
		return
	}
	w, err := (&decoder{systemd: systemd}).sandbox(&r)
	if refused(t, err) {
		return
	}
	if w.Name == "" || w.Namespace == "" || w.UID == "" || strings.ContainsAny(w.Hostname, "\n ") || strings.Contains(w.CgroupParent, "..") && !systemd {
		t.Errorf("decoding {%v} let %+v through", &r, w)
	}
	again := w
	text, err := json.Marshal(w)
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil || !equalJSON(t, w, again) {
		t.Errorf("%+v does not survive its record: %v", w, err)
	}
	st := sandbox.SandboxStatus{ID: "s", Config: w}
	if _, err := proto.Marshal(encodeSandboxStatus(&st)); err != nil {
		t.Errorf("status of %+v: %v", w, err)
	}
}

func fuzzContainer(t *testing.T, data []byte) {
	var r v1.CreateContainerRequest
	if proto.Unmarshal(data, &r) != nil {
		return
	}
	_ = redacted(&r)
	w, err := newDecoder().container(&r)
	if refused(t, err) {
		return
	}
	if w.Name == "" || w.Image.Ref == "" || strings.HasPrefix(w.LogPath, "/") || strings.HasPrefix(w.LogPath, "..") {
		t.Errorf("decoding {%v} let %+v through", &r, w)
	}
	for _, m := range w.Mounts {
		if !strings.HasPrefix(m.ContainerPath, "/") || !strings.HasPrefix(string(m.HostPath), "/") {
			t.Errorf("decoding {%v} let mount %+v through", &r, m)
		}
	}
	text, err := json.Marshal(w)
	again := w
	if err == nil {
		err = json.Unmarshal(text, &again)
	}
	if err != nil || len(again.Env) != len(w.Env) {
		t.Errorf("%+v does not survive its record: %v", w, err)
	}
	for i := range w.Env {
		if again.Env[i] != w.Env[i] {
			t.Errorf("variable %+v comes back from its record as %+v", w.Env[i], again.Env[i])
		}
	}
	st := sandbox.ContainerStatus{ID: "c", Config: w, Resources: w.Resources, StopSignal: w.StopSignal}
	if _, err := proto.Marshal(encodeContainerStatus(&st, nil)); err != nil {
		t.Errorf("status of %+v: %v", w, err)
	}
}

func fuzzOthers(t *testing.T, data []byte) {
	var list v1.ListContainersRequest
	if proto.Unmarshal(data, &list) == nil {
		match, err := containerFilter(list.GetFilter())
		if !refused(t, err) {
			match(&sandbox.ContainerStatus{})
		}
	}
	var pull v1.PullImageRequest
	if proto.Unmarshal(data, &pull) == nil {
		_ = redacted(&pull)
		d := newDecoder()
		d.image("image", pull.GetImage())
		refused(t, d.err())
	}
}

func refused(t *testing.T, err error) bool {
	if err != nil && !errkind.Is(err, errkind.Invalid) {
		t.Errorf("decoding = %v, want no other kind than invalid", err)
	}
	return err != nil
}
