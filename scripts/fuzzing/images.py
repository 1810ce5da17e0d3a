"""Small images in every format that the program reads."""

import base64
import struct
import zlib

# Encoded by Pillow: neither the standard library nor the program writes these formats.
ENCODED = {
    "baseline.jpg": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU4^xVke;Kft*d8%yve$z$C;?Br2pFhLjfEf"
        "9w;LyPAe-;q;6eqq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@@4A01*fP6aW|l0U`hb5di}c0sq7R9{>OW1pxs80RaI3"
        "00000000010s{mE1_uZU3Jd?l0JRVR0s#X90t5pE1q1{D00Dgg0s{a95d{(<F+m0sQDFxnaTGFvk)a49Lb1UWQqk}vGh%Xr2?`b$7#SKRCMPH<Dl|1VH#j*u"
        "LqtVJM@UIZQ&d$}S6EqEV`OD!XJ~0^b98lfcX)YvgM@{Khlq)al9QB`mY0~BnxdnmrKYE-sj9NGw6(UkxVgH*!^FkL$H>Xb($mz{*4NnC+Tr5k<mKk)=;`Y5"
        "^7Hid_V@Vt`v1fL9{~UZ0RaI40RaI40RR91000010s{mE1_uZU3Jd?l0JRYS0s#U91Oo&I1q1{D0Rndb0RjUN1O*{61`<J02Vrp&A~Jyp6he`qvB3!=Gg9ys"
        "Vsg<679=#`CGi&+85$-hC@Cs6Ha9pqIzvQ7Mn_0VN>fx-R##YAT4Q8oW@l(=YIAgTc6WGrdV+(5g@%WSiHeewl$Dm3n3<ZQqok##r>Lo_va__cwzs&sy28W6"
        "#m2|T$;#5x)YaD4*xB0R<K*S$=jiF`^7Hid_V@Vt`v2Mh3<CiG0ucid06zf6jtq9IF~N@2W;ik0tj7jBR?%cqu2zl=cA~GWIRpcMI+`jaiRJiq^+@#LS3zP$"
        "^r^Oh03GO}v8>vp?0n@7$+m*n^rDI@f~&mWsp`YwKmXY"
    ),
    "oriented.jpg": (
        "|JeWF01!$>Nk#wx0RR9200961|KR{4MR;ju002!*04e|g00;m90TKWM0000100sa600000|Na0AVIX5~ZEa<4bpP7`LjW5R6c-c`8y6NA9vmAWC_*bJB_$|P"
        "Iz2E#U{z&gUsYXOYIvD}YH^TrTU~{<hLE14tF5bNfV|1NrpKA6tEB(i07C&B9v&zoC{8OYPNZ&KZlt87q@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*z"
        "q@<*zq@<*zq@<*zq@<+(zyJ{l02BZi0|6oc0uccN5dr_i03QGV0R;g80RaI400000000000RjUA1qKHQ2?`7U!~nGr00IF60|EpC1qB2I0004f0RjU61Q7)i"
        "Au&M)6H#FYB5@QlfsvsIBSNvk6;jdgBr{@if(Z&17Z@2DB_<~*DJnEIHa9pqIzvQ7Mn_0VN>fx-R##YAT4Q8oW@l(=YIAgTc6WGrdV_?8hKGoWijtF*m6n&7"
        "nVO=bq@|{(sHv*5v$VCgx45~w!o$SH#>dFX%F@%+)z;V8+1laa<K*S$=jiF`@$&QZ_4fDp`TGCF03QJW0|5a60RaI40RaF2000000RjUA1qKHQ2?`7U!~nGs"
        "00IF51Ox*F2L%KK009Db009C65d;MxF$NMrQ3qjh6CyH!2oyq*p|QaUBQsL)6=HJH3Kk?Z;U)1G7#SKSCnzZ@H8wXmIXXi`MMg(RNlH^xRaRG6Sz2RcWoBn+"
        "X=-zHb#`}nd3u6_goTEOh>41lla!T~mzbHFqNAjxrl+W>s<N}RwYImoxw^u`#Kp$P$jQpm)6~`0*Vx(G;^XAy=I7|?>hkmS_4fDp`TGCb01N{G00I#M5dc2`"
        "#*Pejt1-cj)n+&`+N{S0J66$TQm$5x40fWgtT_Y&fI6BgC5h$ucJ)Z~;a5RoMf9n*fB+rnqOq*nr0jg<4av5G*z}@`D}t-M->K@u;XnV`"
    ),
    "progressive.jpg": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU4^xVke;Kft*d8%yve$z$C;?Br2pFhLjfEf"
        "9w;LyPAe-;q;6eqq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@@4C01*fP6aW|l0U`hb5di}c0sq7R7XSeP0RaF200000"
        "00000000030tElW02cuP0RaI30000000000000021Oo;C+5ij#0RRFJ0}ucJ0phJH%$);MVCL*$U;o4a7Z3pf0RaF20000000000000315E1{{00;pA009L8"
        "2q1zBk-z`M02dJf0RaI30000000000000000s%4q+5iXv0|5a)0h?tZoPYns02&bh0s;d70000000000000000Rk}t5i<YU00;pB0RcY&L&>Tq$tyqq!~hf!"
        "0RR91000000000000000F#p;B2mt{A20sEH|HJ?o5C8)K0RR9100000000000003IAR+(S00;pA00BQC%BqSY6Q}>$01N{G00IC50000Gr!V~f!~ho&0RRI4"
        "00000000000000001zQD|Jncu0RsU6KM-}d7yrZn7ZCvg0RaF2000000000000031aS{L800;pB0RcY{Rwjgz@_l=M|HJ?p5C8)K0RaF200000000000003I"
        "K~XXP+5iXv0RRC%5RMVTI7bNKMAC6DS<FI7Eg{Db|Je"
    ),
    "gray.jpg": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU4^xVke;Kft*d8%yve$z$C;?Br2oJG3kU!d"
        "02l!Q5di<h03QGV0R;g80RaI400000000000RjUA1qKHQ2?`7U!~nGr00IF60|EpC1qB2I0004f0RjU61Q7)iAu&M)6H#FYB5@QlfsvsIBSNvk6;jdgBr{@i"
        "f(Z&17Z@2DB_<~*DJnEIHa9pqIzvQ7Mn_0VN>fx-R##YAT4Q8oW@l(=YIAgTc6WGrdV_?8hKGoWijtF*m6n&7nVO=bq@|{(sHv*5v$VCgx45~w!o$SH#>dFX"
        "%F@%+)z;V8+1laa<K*S$=jiF`@$&QZ_4fDp`TGCb00;pA002J##*Pejt1-cj)n+&`+KAxCYO@>|?Ncl{1OtFNnply2Ds7+u2YQ=mEssk7*#"
    ),
    "cmyk.jpg": (
        "|JeWT01iQ9Z(?NtWB>pF0095n07C#95)>B{5gQj47aklNASgmBC?zE*Q93;^LSR*8WM5TXTWWZjfogG(b6Z`7wT6(MqpPi}XMnuPx~9jOsH>#^zyK5o02BZi"
        "1Va%3O%VWD5dcdO0RO}Q9{>OW1pxs80RaI300000000010s{mE1_uZU3Jd?l0JRVR0s#X90t5pE1q1{D00Dgg0s{a95d{(<F+m0sQDFxnaTGFvk)a49Lb1UW"
        "Qqk}vGh%Xr2?`b$7#SKRCMPH<Dl|1VH#j*uLqtVJM@UIZQ&d$}S6EqEV`OD!XJ~0^b98lfcX)YvgM@{Khlq)al9QB`mY0~BnxdnmrKYE-sj9NGw6(UkxVgH*"
        "!^FkL$H>Xb($mz{*4NnC+Tr5k<mKk)=;`Y5^7Hid_V@Vt`v2Mh4g^C0O#oQ{O8@{r0K>KISl?v!tmq-~J8sY6T{Uc4_M_~c)u9AFM{U{sD6NZL)P0lMv|xwG"
        "?YlpP70254t<SQ1R&)^g9k*xjqP8u2QT9)2(Sjc%w(R~CR>iMsKFRG>Cz?ChZlQ+oL2n2iY}<3cIpA~C`Tqbixcgq!vE{F&Sg=9Q;YDm(_M^*RN~5n_%LTk}"
        "MB7$;?<1)L9DO;Wwk>;6<*%hjtxodlj{{@NfB=9GPzgWh(u)7t"
    ),
    "restart.jpg": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV02>k%7Zed27Zw*D92+1gLMtdGB`8rkJupIGRb^yfRb5+Zc$tA}agcLcU4^xVke;Kft*d8%yve$z$C;?Br2pFhLjfEf"
        "9w;LyPAe-;q;6eqq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@<*zq@@4A01*fP6aW|l0U`hb5di}c0sq7R9{>OW1pxs80RaI3"
        "00000000010s{mE1_uZU3Jd?l0JRVR0s#X90t5pE1q1{D00Dgg0s{a95d{(<F+m0sQDFxnaTGFvk)a49Lb1UWQqk}vGh%Xr2?`b$7#SKRCMPH<Dl|1VH#j*u"
        "LqtVJM@UIZQ&d$}S6EqEV`OD!XJ~0^b98lfcX)YvgM@{Khlq)al9QB`mY0~BnxdnmrKYE-sj9NGw6(UkxVgH*!^FkL$H>Xb($mz{*4NnC+Tr5k<mKk)=;`Y5"
        "^7Hid_V@Vt`v1fL9{~UZ0RaI40RaI40RR91000010s{mE1_uZU3Jd?l0JRYS0s#U91Oo&I1q1{D0Rndb0RjUN1O*{61`<J02Vrp&A~Jyp6he`qvB3!=Gg9ys"
        "Vsg<679=#`CGi&+85$-hC@Cs6Ha9pqIzvQ7Mn_0VN>fx-R##YAT4Q8oW@l(=YIAgTc6WGrdV+(5g@%WSiHeewl$Dm3n3<ZQqok##r>Lo_va__cwzs&sy28W6"
        "#m2|T$;#5x)YaD4*xB0R<K*S$=jiF`^7Hid_V@Vt`v2Vk1ONg5+5ij#0RRFK0}%i}0LG3CcB?VLj@4#3G1{!h20K>KWKynw|ImUsG1`j0u;dU90P1L~mM53t"
        "+tnk`g<TK-(X$dSrA@Q|0PjT=6`NF@k1~em|I*dk3uDrXD6clFyx*x%_)q`Y"
    ),
    "lossy.webp": (
        "Qb|Tepa1{>S4BclR!}$~lmGw#Pz3;;0V)^(6aYUtj=5H^DWxN*4N>4H32XqJGK7DC+B6`8pvJ*TPjfl?Z~oAFJi-6~{_@=i`S7f%+l+<+nVVf+;y<o8(;4O`"
        "SclDx#j78$dH&a<j+A?4iuJ~|hhMXh`ex%lW-Gv(Qe6|u56=mU;ji)8IoJ{DG>r?SMz;$Td%tn+HSBzU_zMEh=-2=N"
    ),
    "lossless.webp": (
        "Qb|TeiU0rrS4BclR!}%t3IG5A2mk;84*&oU0034{I7~_a001u!zykoeGDP%0b`jD4Feqvp$q9hrPk67Fe>4hY0Vex~lS-%=r4nk}wqfk8rMw|khAQ7J2*Hf|"
        "hycY@v|Dgqj#pz?`0j53MOaBj8UO$QO-%qQ000080099K00RI30096700000000"
    ),
    "alpha.webp": (
        "Qb|Tet^fc4S4BclR!}%t3IG5A5C8xG4*&oU002QuP)Jh%000F?Kp;R-_<z}rhzLHb6^z@qk<`in-s`!x#=HIZmLekhKL)QZOw|lIDb~f1i(hM`G1cP4G>eV("
        "#gLAi6z5`7y(y(yln0NTSYOP>x-i8l764XII3P3t006K70G$CU5C9MW1wecyumW@e4}usF0RHZrTiXwoU<>OFtzo~2Qf(OsWB8gsSm$)W000"
    ),
    "animated.webp": (
        "Qb|Te&Hw-aS4BclR!}%t3IG5A0ssI24*&oU002QwNlgX-0000000000K~7CZP5=M^00000000jF01p5FG5`PqR!}$~HUIzsPyqm)0V)sx5C8{2mL;$N1atrZ"
        "{@$xK^``tS{ei;-E1XTWoiUP)_w^lo&R_od>vD<!002QwO-4)r00000000004*&oU001%o0034{I3P3t002}00G$CU5C9MW005RHumA*f0092ptM-IUe~pWD"
        "^NBanP)KGvkpBi#cKm-AVgd!Y@Bj"
    ),
}


def chunk(kind, data):
    """A chunk of a PNG file, with its length and CRC."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(width, height, depth, color_type, rows, before=(), interlaced=0):
    """A PNG file of raw rows without filter bytes; `before` are chunks before the first IDAT."""
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*c) for c in chunks)


def value(x, y, channel):
    return (x * 9 + y * 13 * (channel + 1) + 60 * ((x // 4 + y // 4 + channel) % 2)) % 256


def simple_png(width=24, height=20, channels=3):
    """An 8-bit PNG file."""
    rows = [bytes(value(x, y, c) for x in range(width) for c in range(channels)) for y in range(height)]
    return png(width, height, 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows)


def interlaced_png(width=9, height=7):
    """A grayscale PNG file with Adam7 interlacing."""
    rows = []
    for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        for y in range(y0, height, dy):
            row = bytes(value(x, y, 0) for x in range(x0, width, dx))
            if row:
                rows.append(row)
    return png(width, height, 8, 0, rows, interlaced=1)


def images():
    """All images as bytes by file name."""
    palette = bytes(value(i, i, c) for i in range(16) for c in range(3))
    packed = [bytes((value(x, y, 0) % 16) << 4 | value(x + 1, y, 0) % 16 for x in range(0, 12, 2)) for y in range(10)]
    orientation = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    wide = [b"".join(struct.pack(">H", value(x, y, c) * 257) for x in range(8) for c in range(3)) for y in range(8)]
    files = {
        "rgb.png": simple_png(),
        "rgba.png": simple_png(12, 10, 4),
        "gray-alpha.png": simple_png(12, 10, 2),
        "palette.png": png(12, 10, 4, 3, packed, [(b"PLTE", palette), (b"tRNS", b"\0\x80\xff")]),
        "bits.png": png(16, 8, 1, 0, [bytes([0x5A ^ y, 0xC3 + y]) for y in range(8)], [(b"tRNS", b"\0\1")]),
        "wide.png": png(8, 8, 16, 2, wide, [(b"gAMA", b"\0\0\xb1\x8f"), (b"eXIf", orientation), (b"tEXt", b"Title\0cat")]),
        "interlaced.png": interlaced_png(),
    }
    return files | {name: base64.b85decode(text) for name, text in ENCODED.items()}
