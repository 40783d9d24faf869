package kubelet

import (
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cridproject/crid/test/e2e"
)

// pushDataImage puts an image of files only into the registry.
func (k *kubelet) pushDataImage() {
	k.Registry.Push("e2e/data:1", e2e.Image(k.t, v1.Config{}, e2e.Layer(k.t,
		e2e.File{Path: "conf", Mode: 0o644, Data: []byte("key=value\n")},
		e2e.File{Path: "sub", Mode: 0o755, Dir: true},
		e2e.File{Path: "sub/deep", Mode: 0o755, Dir: true},
		e2e.File{Path: "sub/deep/file", Mode: 0o644, Data: []byte("deep\n")},
		e2e.File{Path: "tool", Mode: 0o755, Data: []byte("#!/bin/sh\necho a tool\n")},
	)))
}

// imageVolume: read-only, and its programs run (docs/mounts.md). The digest in the
// pod's status (gate ImageVolumeWithDigest) is not shown: kubelet 1.36 looks for the
// mount by a name that CRI does not have.
func (k *kubelet) imageVolume() {
	k.run("image-volume", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts:
			- {name: data, mountPath: /data}
			- {name: data, mountPath: /deep, subPath: sub/deep}
		volumes:
		- {name: data, image: {reference: registry.k8s.io/e2e/data:1, pullPolicy: IfNotPresent}}
	`)
	k.await("image-volume", "is ready", ready)
	got := k.sh("image-volume", "main", `cat /data/conf /deep/file; ls /deep; /data/tool
		for d in /data /data/sub /deep; do touch $d/x 2>&1 | grep -o 'Read-only.*'; done`)
	if want := "key=value\ndeep\nfile\na tool" + strings.Repeat("\nRead-only file system", 3); got != want {
		k.t.Errorf("the container sees\n%s\nwant\n%s", got, want)
	}
}

func (k *kubelet) imageVolumeMissing() {
	k.run("refused-image", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: data, mountPath: /data}]
		volumes:
		- {name: data, image: {reference: registry.k8s.io/e2e/absent:1}}
	`)
	k.refused("refused-image", waits{"main", "ErrImagePull|ImagePullBackOff", []string{"registry.k8s.io/e2e/absent:1"}})
}

func (k *kubelet) imageVolumePathMissing() {
	k.run("refused-image-path", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			volumeMounts: [{name: data, mountPath: /data, subPath: sub/absent}]
		volumes:
		- {name: data, image: {reference: registry.k8s.io/e2e/data:1}}
	`)
	k.refused("refused-image-path", waits{"main", "CreateContainerError", []string{"sub/absent"}})
}
