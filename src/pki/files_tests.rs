use super::{
    super::testing::{Pair, SecretVolume},
    *,
};

fn try_load(files: CertificateFiles) -> Result<FileCertificate, CertificateError> {
    let metrics = Metrics::new();
    FileCertificate::load(files, Certificate::new(metrics.clone()), metrics)
}

fn load(volume: &SecretVolume) -> FileCertificate {
    try_load(volume.files()).unwrap()
}

fn served(files: &FileCertificate) -> CertificateDer<'static> {
    files.certificate.key().unwrap().cert[0].clone()
}

fn seen(certificate: &FileCertificate) -> SeenFiles {
    SeenFiles { served: certificate.loaded.clone(), ..SeenFiles::default() }
}

#[test]
fn loads_a_chain_and_says_when_it_expires() {
    let pair = Pair::until(2100);
    let certificate = load(&SecretVolume::new(&pair.cert, &pair.key));
    assert_eq!(served(&certificate), pair.der);
    // 2100-01-01
    assert_eq!(certificate.metrics.certificate_not_after.get(), 4_102_444_800);
}

#[test]
fn each_error_names_the_file_and_the_way_out() {
    let (a, b) = (Pair::until(2100), Pair::until(2100));
    let broken = a.cert.replace("MII", "!!!");
    let not_a_certificate = a.key.replace("PRIVATE KEY", "CERTIFICATE");
    let not_a_key = a.cert.replace("CERTIFICATE", "PRIVATE KEY");
    let table = [
        ("", a.key.as_str(), "no-certificate", "tls.crt"),
        ("hunter2", &a.key, "no-certificate", "the leaf first"),
        (&broken, &a.key, "no-certificate", "tls.crt"),
        (&not_a_certificate, &a.key, "no-certificate", "tls.crt"),
        (&a.cert, "", "no-key", "tls.key"),
        (&a.cert, "-----BEGIN hunter2", "no-key", "put the key of"),
        (&a.cert, &a.cert, "no-key", "tls.key"),
        (&a.cert, &not_a_key, "unusable-key", "expected ECDSA"),
        (&a.cert, &b.key, "mismatch", "write both files anew"),
    ];
    for (cert, key, reason, expects) in table {
        let volume = SecretVolume::new(cert, key);
        let error = try_load(volume.files()).err().unwrap();
        let text = error.to_string();
        assert_eq!(error.reason(), reason, "{text}");
        assert!(text.contains(expects) && text.contains("tls.") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_missing_file_is_named_with_its_flag() {
    let pair = Pair::until(2100);
    let volume = SecretVolume::new(&pair.cert, &pair.key);
    let nowhere = PathBuf::from("/nonexistent/x.pem");
    for (files, flag) in [
        (CertificateFiles { cert: nowhere.clone(), ..volume.files() }, "--tls-cert"),
        (CertificateFiles { key: nowhere.clone(), ..volume.files() }, "--tls-key"),
    ] {
        let text = try_load(files).err().unwrap().to_string();
        assert!(text.contains("/nonexistent/x.pem") && text.contains(flag), "{text}");
    }
}

#[test]
fn a_new_pair_is_served_at_the_next_look() {
    let (old, new) = (Pair::until(2100), Pair::until(2101));
    let mut volume = SecretVolume::new(&old.cert, &old.key);
    let certificate = load(&volume);
    let mut seen = seen(&certificate);
    assert!(!certificate.look(&mut seen));
    assert_eq!(served(&certificate), old.der);
    volume.replace(&new.cert, &new.key);
    assert!(!certificate.look(&mut seen));
    assert_eq!(served(&certificate), new.der);
    assert_eq!(certificate.metrics.certificate_not_after.get(), 4_133_980_800);
    assert_eq!(certificate.metrics.certificate_reload_errors.get(), 0);
}

#[test]
fn a_bad_pair_is_refused_once_and_the_former_stays() {
    let (old, new) = (Pair::until(2100), Pair::until(2101));
    let mut volume = SecretVolume::new(&old.cert, &old.key);
    let certificate = load(&volume);
    let errors = || certificate.metrics.certificate_reload_errors.get();
    let mut seen = seen(&certificate);

    volume.replace(&new.cert, &old.key);
    assert!(certificate.look(&mut seen), "looked at again soon");
    assert_eq!(errors(), 0);
    for _ in 0..3 {
        assert!(!certificate.look(&mut seen));
        assert_eq!(errors(), 1, "said once");
    }
    assert_eq!(served(&certificate), old.der);

    volume.replace("", "");
    assert!(certificate.look(&mut seen));
    assert!(!certificate.look(&mut seen));
    assert_eq!(errors(), 2, "another change");

    volume.replace(&new.cert, &new.key);
    assert!(!certificate.look(&mut seen));
    assert_eq!((served(&certificate), errors()), (new.der.clone(), 2));
}

#[test]
fn a_pair_caught_in_mid_change_is_no_error() {
    let (old, new) = (Pair::until(2100), Pair::until(2101));
    let mut volume = SecretVolume::new(&old.cert, &old.key);
    let certificate = load(&volume);
    let mut seen = seen(&certificate);
    volume.replace(&new.cert, &old.key);
    assert!(certificate.look(&mut seen));
    volume.replace(&new.cert, &new.key);
    assert!(!certificate.look(&mut seen));
    assert_eq!(served(&certificate), new.der);
    assert_eq!(certificate.metrics.certificate_reload_errors.get(), 0);
}

#[test]
fn a_file_that_is_away_for_a_while_is_no_change() {
    let pair = Pair::until(2100);
    let volume = SecretVolume::new(&pair.cert, &pair.key);
    let certificate = load(&volume);
    let mut seen = seen(&certificate);
    let target = fs::read_link(volume.files().cert).unwrap();
    fs::remove_file(volume.files().cert).unwrap();
    assert!(certificate.look(&mut seen));
    std::os::unix::fs::symlink(target, volume.files().cert).unwrap();
    assert!(!certificate.look(&mut seen));
    assert_eq!(served(&certificate), pair.der);
    assert_eq!(certificate.metrics.certificate_reload_errors.get(), 0);
}
