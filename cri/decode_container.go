package cri

import (
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

// container decodes a CreateContainerRequest. The sandbox_config in it is not
// looked at: the sandbox keeps the one that it was made with, and clients send
// copies that differ (kubernetes/kubernetes#138441).
func (d *decoder) container(r *v1.CreateContainerRequest) (config.Container, error) {
	d.check("pod_sandbox_id", badID(r.GetPodSandboxId()))
	c := r.GetConfig()
	if c == nil {
		d.reject("config", "must be set")
		return config.Container{}, d.err()
	}
	w := config.Container{
		Image:       d.image("config.image", c.GetImage()),
		Command:     d.args("config.command", c.GetCommand()),
		Args:        d.args("config.args", c.GetArgs()),
		WorkingDir:  c.GetWorkingDir(),
		Env:         d.env(c.GetEnvs()),
		Mounts:      d.mounts(c.GetMounts()),
		Devices:     d.devices(c.GetDevices()),
		CDIDevices:  d.cdiDevices(c.GetCDIDevices(), c.GetAnnotations()),
		Labels:      c.GetLabels(),
		Annotations: c.GetAnnotations(),
		LogPath:     d.logPath(c.GetLogPath()),
		Stdin:       c.GetStdin(),
		StdinOnce:   c.GetStdinOnce(),
		TTY:         c.GetTty(),
		StopSignal:  d.stopSignal(c.GetStopSignal()),
		Resources:   d.resources("config.linux.resources", c.GetLinux().GetResources()),
		Security:    d.security(c.GetLinux().GetSecurityContext()),
	}
	if m := c.GetMetadata(); m == nil {
		d.reject("config.metadata", "must be set")
	} else {
		w.Name, w.Attempt = m.GetName(), m.GetAttempt()
		d.check("config.metadata.name", badName(w.Name))
	}
	if w.WorkingDir != "" {
		d.check("config.working_dir", badPath(w.WorkingDir))
	}
	return w, d.err()
}

// image decodes an ImageSpec that must name an image.
func (d *decoder) image(field string, s *v1.ImageSpec) config.Image {
	if s == nil {
		d.reject(field, "must be set")
		return config.Image{}
	}
	d.check(field+".image", badToken(s.GetImage()))
	d.check(field+".user_specified_image", badText(s.GetUserSpecifiedImage()))
	if h := s.GetRuntimeHandler(); h != "" {
		d.reject(field+".runtime_handler", "there is no handler %q, only the default one, \"\"", h)
	}
	return config.Image{
		Ref:            s.GetImage(),
		UserSpecified:  s.GetUserSpecifiedImage(),
		RuntimeHandler: s.GetRuntimeHandler(),
		Annotations:    s.GetAnnotations(),
	}
}

func (d *decoder) args(field string, in []string) []string {
	for i, a := range in {
		d.check(at(field, i), badArg(a))
	}
	return in
}

// env decodes variables. CRI has bytes for a value, but the OCI runtime spec is
// JSON and cannot carry what is not UTF-8: refused, since a container must not
// start with another value than it was given. Values are secrets often enough
// that no error repeats them.
func (d *decoder) env(in []*v1.KeyValue) []config.EnvVar {
	var out []config.EnvVar
	for i, kv := range in {
		field := at("config.envs", i)
		switch key := kv.GetKey(); {
		case key == "":
			d.reject(field+".key", "must not be empty")
		case strings.ContainsAny(key, "=\x00"):
			d.reject(field+".key", "must not contain '=' or a NUL byte")
		}
		value := string(kv.GetValue())
		d.check(field+".value", badArg(value))
		if !utf8.ValidString(value) {
			d.reject(field+".value", "is not UTF-8, which is all that an OCI runtime spec can carry")
		}
		out = append(out, config.EnvVar{Name: kv.GetKey(), Value: value})
	}
	return out
}

// logPath keeps a log inside the sandbox's log directory. What symbolic links
// inside that directory do is the writer's business.
func (d *decoder) logPath(p string) string {
	const field = "config.log_path"
	switch {
	case p == "":
		return ""
	case path.IsAbs(p):
		d.reject(field, "%q must be relative to the sandbox's log_directory", p)
	case slices.Contains(strings.Split(p, "/"), ".."):
		d.reject(field, "%q must not contain \"..\"", p)
	case path.Clean(p) == ".", strings.HasSuffix(p, "/"):
		d.reject(field, "%q must name a file", p)
	}
	d.check(field, badText(p))
	return path.Clean(p)
}

func (d *decoder) stopSignal(s v1.Signal) string {
	name, ok := signalName(s)
	if !ok {
		d.reject("config.stop_signal", "there is no signal %d", int32(s))
	}
	return name
}

func (d *decoder) devices(in []*v1.Device) []config.Device {
	var out []config.Device
	for i, v := range in {
		field := at("config.devices", i)
		d.check(field+".container_path", badPath(v.GetContainerPath()))
		d.check(field+".host_path", badPath(v.GetHostPath()))
		perms := v.GetPermissions()
		if perms == "" || len(perms) > 3 || strings.Trim(perms, "rwm") != "" {
			d.reject(field+".permissions", "%q must be one or more of r, w and m", perms)
		}
		out = append(out, config.Device{
			ContainerPath: config.ContainerPath(path.Clean(v.GetContainerPath())),
			HostPath:      config.HostPath(v.GetHostPath()),
			Permissions:   perms,
		})
	}
	return out
}
