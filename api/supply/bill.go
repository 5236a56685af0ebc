package supply

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/leapcell/leapcell"
)

// placesShown is how many files a package is said to be in.
const placesShown = 10

// billOf makes the bill of materials of a deployment's image. The same image gives the same bill:
// it has no time of its own, and its serial number is made of the digest.
func billOf(dep leapcell.Deployment, in contents) ([]byte, error) {
	repository, digest, _ := strings.Cut(dep.Image, "@")
	bom := cdx.NewBOM()
	bom.SerialNumber = serial(digest)
	bom.Metadata = &cdx.Metadata{
		Component: &cdx.Component{BOMRef: dep.Image, Type: cdx.ComponentTypeContainer, Name: repository, Version: digest},
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "leapcelld"}}},
	}
	var all []cdx.Component
	if in.system.ID != "" {
		all = append(all, cdx.Component{
			BOMRef: "os:" + in.system.ID, Type: cdx.ComponentTypeOS, Name: in.system.ID, Version: in.system.Version, Description: in.system.Name,
		})
	}
	at := map[string]int{} // places in all, by package URL
	for _, p := range in.packages {
		url := p.url(in.system)
		i, ok := at[url]
		if !ok {
			i = len(all)
			at[url] = i
			all = append(all, component(p.Package, url))
		}
		if places := all[i].Evidence.Occurrences; len(*places) < placesShown && !slices.ContainsFunc(*places, func(o cdx.EvidenceOccurrence) bool { return o.Location == "/"+p.path }) {
			*places = append(*places, cdx.EvidenceOccurrence{Location: "/" + p.path})
		}
	}
	slices.SortFunc(all, func(a, b cdx.Component) int { return strings.Compare(a.BOMRef, b.BOMRef) })
	bom.Components = &all
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("supply: bill of materials: %w", err)
	}
	return out.Bytes(), nil
}

func component(p Package, url string) cdx.Component {
	c := cdx.Component{
		BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: p.Name, Version: p.Version, PackageURL: url,
		Evidence: &cdx.Evidence{Occurrences: &[]cdx.EvidenceOccurrence{}},
	}
	if p.Licence != "" && len(p.Licence) <= textLimit {
		c.Licenses = &cdx.Licenses{{License: &cdx.License{Name: p.Licence}}}
	}
	return c
}

// serial is a UUID, as the format wants it.
func serial(digest string) string {
	b := sha256.Sum256([]byte("leapcell bill of materials " + digest))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // version 8, of a form of one's own
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// url is the package URL, as https://github.com/package-url/purl-spec describes it for each type.
func (p Package) url(of system) string {
	space, name := "", p.Name
	switch p.Type {
	case "deb", "apk":
		space = of.ID
		if space == "" {
			space = map[string]string{"deb": "debian", "apk": "alpine"}[p.Type]
		}
	case "pypi":
		name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	case "npm", "golang":
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			space, name = name[:i], name[i+1:]
		}
		if p.Type == "golang" {
			space, name = strings.ToLower(space), strings.ToLower(name)
		}
	}
	out := "pkg:" + p.Type + "/"
	if space != "" {
		parts := strings.Split(space, "/")
		for i, s := range parts {
			parts[i] = escape(s)
		}
		out += strings.Join(parts, "/") + "/"
	}
	out += escape(name) + "@" + escape(p.Version)
	var more []string
	if p.Arch != "" {
		more = append(more, "arch="+escape(p.Arch))
	}
	if space != "" && of.ID != "" && of.Version != "" && (p.Type == "deb" || p.Type == "apk") {
		more = append(more, "distro="+escape(of.ID+"-"+of.Version))
	}
	if len(more) > 0 {
		out += "?" + strings.Join(more, "&")
	}
	return out
}

// escape keeps what package URLs keep.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(".-_~:", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
